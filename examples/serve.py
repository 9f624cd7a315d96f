"""Serve a trained network over HTTP: POST an image file, get its most probable classes.

pip install -e '.[serve]'
python examples/serve.py RUN_DIR
curl --data-binary @cat.png 'http://127.0.0.1:8000/predict?top=3'
"""

import os
import sys
from typing import Annotated

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request

import kd
from kd.deploy.predict import ranked

LARGEST = 10 * 2**20  # bytes of an image file; decoded, it may have 200 MB


def make_app(student):
    app, one_at_a_time = FastAPI(), CapacityLimiter(1)

    def classify(data, top):
        return ranked(student, student.preprocess(data), top)[0]

    @app.post("/predict")
    async def predict(request: Request, top: Annotated[int, Query(ge=1)] = 1):
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > LARGEST:
                raise HTTPException(413, f"an image file has {LARGEST:,} bytes at most")
        try:
            best = await to_thread.run_sync(classify, bytes(data), top, limiter=one_at_a_time)
        except kd.UserError as error:
            raise HTTPException(400, str(error)) from error
        return {"label": best[0].label, "top": [prediction._asdict() for prediction in best]}

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(kd.load(sys.argv[1])), port=int(os.environ.get("PORT", "8000")), limit_concurrency=50)
