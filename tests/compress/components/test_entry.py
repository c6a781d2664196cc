"""`module:function`: imported from where one stands, called once, and every way that can fail."""

import sys
from pathlib import Path

import pytest
import torch

from compress import components
from compress.errors import UserError

GOOD = """
import torch
from torch import nn

def decoder():
    return nn.Sequential(nn.Conv2d(4, 3, 1), nn.Upsample(scale_factor=2), nn.Sigmoid())

def both():
    return decoder(), torch.zeros(1, 4, 8, 8)

def number():
    return 3

def needs(width):
    return decoder()

class Made:
    decoder = staticmethod(decoder)

ready = decoder()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "entry_good": GOOD,
        "entry_broken": "def decoder(:\n",
        "entry_fails": "x = 1\nraise ValueError('no such luck')\n",
        "entry_lacks": "import entry_not_installed_anywhere\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    before = list(sys.path)
    yield
    assert sys.path == before
    for name in [name for name in sys.modules if name.startswith("entry_")]:
        del sys.modules[name]


LATENTS = torch.zeros(1, 4, 8, 8)


def adopt(entry, example=LATENTS):
    return components.adopt_named(entry, "mine/decoder", "decoder", example)


def test_it_is_built_from_the_current_folder_with_the_same_random_weights_each_time():
    one, two = adopt("entry_good:decoder"), adopt("entry_good:Made.decoder")
    assert torch.equal(one.module[0].weight, two.module[0].weight)
    assert one.component == "mine/decoder" and one.arch.config.entry == "entry_good:decoder"
    assert adopt("entry_good:both", None).arch.config.pixels == 16


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("entry_good", "as package.module:function"),
        ("entry_good.py:decoder", "for a file decoder.py that is --module decoder:FUNCTION"),
        ("a b:c", "as package.module:function"),
        ("entry_absent:decoder", "no module 'entry_absent' in .*PYTHONPATH"),
        ("entry_good:decodre", "has no 'decodre'; it has .*decoder"),
        ("entry_good:ready", "is Sequential; name a function that returns the module"),
        ("entry_good:number", "gives int, not a torch.nn.Module"),
        ("entry_good:needs", "the function failed: TypeError: .*width"),
        ("entry_broken:decoder", "importing entry_broken failed: SyntaxError"),
        ("entry_fails:decoder", r"ValueError: no such luck \(entry_fails.py, line 2\)"),
        ("entry_lacks:decoder", "imports 'entry_not_installed_anywhere', which is not installed"),
    ],
)
def test_what_goes_wrong_is_said_with_what_to_do(entry, words):
    with pytest.raises(UserError, match=words):
        adopt(entry)


def test_without_an_example_the_encoder_is_asked_for():
    with pytest.raises(UserError, match="name the encoder with --encoder"):
        adopt("entry_good:decoder", None)
