"""The example that serves a student, as a server of its own."""

import io
import json
import os
import re
import time
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from PIL import Image

import kd
from tests import processes
from tests.common import ROOT
from tests.deploy.common import weights


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("weights") / "student.safetensors")


@pytest.fixture(scope="module")
def post(student):
    """Starts the server; posts a file's content to it, and returns the status and what was answered."""
    environment = {**os.environ, "PORT": "0"}  # any that is free
    server = processes.start(ROOT / "examples" / "serve.py", student, cwd=student.parent, env=environment, merged=True)
    opener = build_opener(ProxyHandler({}))

    def post(content, query=""):
        request = Request(f"{address[1]}/predict{query}", content, {"Content-Type": "application/octet-stream"})
        try:
            with opener.open(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)["detail"]

    try:
        deadline, address = time.monotonic() + 60, None
        while address is None:
            server.output.seek(0)
            address = re.search(r"running on (http://127\.0\.0\.1:\d+)", server.output.read())
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield post
    finally:
        server.send_signal(2)
        server.communicate(20)


def png(colour="orange"):
    file = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(file, "PNG")
    return file.getvalue()


def test_serve_answers_with_the_classes_of_the_network(post, student):
    status, answer = post(png(), "?top=9")
    (expected,) = kd.load(student).predict(png())
    assert status == 200
    assert answer["label"] == answer["top"][0]["label"] == expected.label
    assert answer["top"][0]["probability"] == pytest.approx(expected.probability, rel=1e-4)
    assert sum(one["probability"] for one in answer["top"]) == pytest.approx(1, abs=1e-5)
    assert len(post(png())[1]["top"]) == 1


@pytest.mark.parametrize("content", [b"", b"%!PS-Adobe", png()[:60]])
def test_serve_refuses_what_is_no_image_in_a_line(post, content):
    status, answer = post(content)
    assert (status, answer.count("\n")) == (400, 0)
    assert answer.startswith("the image: damaged, or not an image (PNG, JPEG")


def test_serve_refuses_too_much(post):
    assert post(bytes(10 * 2**20))[0] == 400  # no image
    assert post(bytes(10 * 2**20 + 1)) == (413, "an image file has 10,485,760 bytes at most")
    assert post(png(), "?top=0")[0] == 422
