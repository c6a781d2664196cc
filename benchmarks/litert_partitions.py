"""This exporter's .tflite file against a plain litert-torch conversion of the same model: partitions and time.

    python benchmarks/litert_partitions.py                          # md-tiny/decoder at 256 pixels, one thread
    python benchmarks/litert_partitions.py snapfusion/decoder --pixels 128
    python benchmarks/litert_partitions.py --keep FOLDER            # keeps the plain file, which takes minutes to make

Both files run in one process in LiteRT's interpreter, one call of each in turn; the ratio is of the calls' CPU seconds,
pair by pair, with a bootstrap interval. A partition is a run of operators that XNNPACK takes; an operator left out is one that
it does not take and that runs in LiteRT's own kernel between two of them.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from compress import components
from compress.components import build, find, read_arch
from compress.export import litert
from compress.export._litert_reader import executed
from compress.nn.structure import example_inputs
from eval.stats import bootstrap_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("component", nargs="?", default="md-tiny/decoder")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()


if __name__ == "__main__":
    main()
