"""Classify images with a trained network; the program is kd/deploy/predict.py, where installed kd-predict."""

import sys

from kd.deploy.predict import main

if __name__ == "__main__":
    sys.exit(main())
