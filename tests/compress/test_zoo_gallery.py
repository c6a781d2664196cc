"""The gallery as a parser and, where one is installed, a browser see it: links, digests, filters, downloads."""

import hashlib
import io
import json
import re
import time
from dataclasses import replace as changed
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import torch
from browser import Browser
from PIL import Image

from compress import zoo, zoo_verify
from compress.cli import main
from compress.errors import UserError
from compress.zoo_gallery import gallery

HOSTILE = """<script>alert("1")</script>'&#?%41"""
DECODER, UNET = "md-tiny/decoder", "md-tiny/unet"
VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Elements closed in order; their attributes; the text that is read."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.path, self.open, self.tags, self.text = path, [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += f"{data} "

    def links(self):
        return [a[name] for _, a in self.tags for name in ("href", "src") if a.get(name)]

    def target(self, link):
        """The file that a link leads to from this page."""
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc, parts.query) == ("", "", ""), link
        assert not parts.path.startswith("/"), link
        return (self.path.parent / unquote(parts.path)).resolve() if parts.path else self.path.resolve()


@pytest.fixture
def entry(tmp_path):
    """Makes an entry; the size of its file is `size`."""
    picture = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 30, 30)).save(picture, "PNG")

    def make(name, *, component=DECODER, formats=("onnx",), size=1000, psnr=27.0, ratio=0.5, host="here", **facts):
        files = {}
        for form in formats:
            files[f"model.{form}"] = tmp_path / "built" / hashlib.sha256(name.encode()).hexdigest() / f"model.{form}"
            files[f"model.{form}"].parent.mkdir(parents=True, exist_ok=True)
            files[f"model.{form}"].write_bytes(bytes([0, 255, ord(form[0])]) + bytes(size - 3))  # no text
        known = {
            "bytes": size, "psnr_mean": psnr, "psnr_mean_of_teacher": 27.9, "latency_ratio": ratio,
            "latency_host": host, "latency_runtime": "toy", "psnr_definition": "d", "evaluation_sha256": "e" * 64,
        }  # fmt: skip
        x = torch.zeros(1, 2)
        return zoo.Entry(
            name=name,
            component=component,
            files=files,
            samples=tuple(zoo.Sample(file=f, format=f.split(".")[1], inputs=(x,), output=x.clone()) for f in files),
            recipe=f"name: {name}\n</code><script>alert(2)</script>",
            verdicts=(
                {"subject": "onnx", "metric": "psnr", "kind": "min", "value": psnr, "limit": 20.0, "passed": True},
            ),
            facts={**known, **facts} if component == DECODER else {"bytes": size, "note": "n", **facts},
            licence="apache-2.0",
            tools={"torch": "2.13.0"},
            preview_png=picture.getvalue() if component == DECODER else None,
        )

    return make


@pytest.fixture
def home(tmp_path, entry):
    """A zoo of five: D is beaten in size by all, timed elsewhere is `far`, of another kind is `unet`."""
    folder = tmp_path / "zoo"
    zoo.add(folder, entry("decoder/big", size=4000, psnr=27.8, ratio=0.9))
    zoo.add(folder, entry("decoder/small", formats=("onnx", "tflite"), size=1000, psnr=26.0, ratio=0.3))
    zoo.add(folder, entry("decoder/worse", size=3000, psnr=25.0, ratio=0.6))
    zoo.add(folder, entry("decoder/far", size=2000, psnr=27.0, ratio=0.1, host="elsewhere"))
    zoo.add(folder, entry("unet/plain", component=UNET, size=500))
    return folder


@pytest.fixture
def site(home, tmp_path):
    gallery(home, tmp_path / "site")
    return tmp_path / "site"


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pages(site):
    return [Page(path) for path in sorted(site.rglob("*.html"))]


def charts(page, title):
    (found,) = re.findall(rf'<svg[^>]*aria-label="{DECODER}: {title}[^>]*>.*?</svg>', page.read_text(), re.DOTALL)
    return set(re.findall(r'data-key="(.*?)"', found))


def test_every_link_is_relative_and_arrives(site):
    assert len(pages(site)) == 6
    for page in pages(site):
        ids = {a["id"] for _, a in page.tags if "id" in a}
        for link in page.links():
            target = page.target(link)
            assert target.is_file(), (page.path, link)
            assert site.resolve() in target.parents
            if link.startswith("#"):
                assert link[1:] in ids
        assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_every_listed_file_is_there_with_its_size_and_digest(home, site):
    index = json.loads((home / "index.json").read_text())["entries"]
    for name, listed in index.items():
        page = Page(site / "entries" / name / "index.html")
        downloads = {page.target(a["href"]) for tag, a in page.tags if tag == "a" and "download" in a}
        assert downloads == {(site / "zoo" / name / file).resolve() for file in listed["files"]}
        for path in downloads:
            assert hashlib.sha256(path.read_bytes()).hexdigest() in page.text
            assert f"{path.stat().st_size:,} bytes" in {a.get("title") for _, a in page.tags}
    checks = zoo_verify.verify(site / "zoo", runner=lambda form: lambda path, *, threads: lambda x: x)
    assert all(check.ok for check in checks), checks


def test_everything_is_read_without_a_script(site):
    page = Page(site / "index.html")
    for name in ("decoder/big", "decoder/small", "decoder/worse", "decoder/far", "unet/plain"):
        assert f" {name} " in page.text
    (form,) = [a for tag, a in page.tags if tag == "form"]
    assert "hidden" in form
    assert not [a for tag, a in page.tags if "hidden" in a and tag not in ("form", "p")]
    assert page.text.count("uncompressed 27.90 dB") == 4


def test_only_what_may_be_compared_is_in_one_chart(site):
    decoders = {f"decoder/{leaf}" for leaf in ("big", "small", "worse", "far")}
    assert charts(site / "index.html", "Quality against file size") == decoders
    assert charts(site / "index.html", "Quality against latency, toy") == decoders - {"decoder/far"}
    assert "they were measured: unet/plain." in " ".join(Page(site / "index.html").text.split())


def test_entries_on_other_inputs_have_a_chart_of_their_own(tmp_path, entry):
    home = tmp_path / "zoo"
    for leaf, inputs in (("a", "1"), ("b", "1"), ("c", "2"), ("d", "2"), ("e", "3")):
        zoo.add(home, entry(f"decoder/{leaf}", evaluation_sha256=inputs * 64))
    text = gallery(home, tmp_path / "site").read_text()
    found = re.findall(r'<svg[^>]*aria-label="[^"]*file size[^>]*>.*?</svg>', text, re.DOTALL)
    assert [re.findall(r'data-key="(.*?)"', chart) for chart in found] == [
        ["decoder/a", "decoder/b"],
        ["decoder/c", "decoder/d"],
    ]


def test_hostile_words_stay_words(tmp_path, entry):
    home = tmp_path / "zoo"
    name = f"decoder/{HOSTILE.replace('/', '|')}"
    zoo.add(home, changed(entry(name, formats=("onnx",), note=HOSTILE), licence=HOSTILE, tools={HOSTILE: HOSTILE}))
    zoo.add(home, entry("decoder/other"))
    site = gallery(home, tmp_path / "site", title=HOSTILE).parent
    for page in pages(site):
        own = [{}] if page.path == site / "index.html" else []
        assert [a for tag, a in page.tags if tag == "script"] == own
        assert not [a for _, attrs in page.tags for a in attrs if a.startswith(("on", "alert"))]
        for link in page.links():
            assert page.target(link).is_file(), link
    own = Page(site / "entries" / name / "index.html")
    assert own.text.count('<script>alert("1")</script>') >= 4
    assert "<script>alert(2)</script>" in own.text


def test_the_same_zoo_gives_the_same_bytes(tmp_path, home, site, entry):
    again = tmp_path / "turned"
    zoo.add(again, entry("unet/plain", component=UNET, size=500))
    for leaf in ("far", "worse", "small", "big"):
        kept = json.loads((home / "decoder" / leaf / "card.json").read_text())["facts"]
        formats = ("onnx", "tflite") if leaf == "small" else ("onnx",)
        zoo.add(
            again,
            changed(entry(f"decoder/{leaf}", formats=formats, size=kept["bytes"], psnr=kept["psnr_mean"]), facts=kept),
        )
    gallery(again, tmp_path / "another")
    assert snapshot(tmp_path / "another") == snapshot(site)


def test_a_site_is_replaced_as_a_whole_and_nothing_else_is(tmp_path, home, site, entry):
    zoo.add(tmp_path / "less", entry("decoder/only"))
    gallery(tmp_path / "less", site)
    assert not (site / "zoo" / "decoder" / "big").exists()
    before = snapshot(site)
    (home / "decoder" / "big" / "model.onnx").write_bytes(bytes(4000))
    with pytest.raises(UserError, match=r"model\.onnx is not the file that the index lists"):
        gallery(home, site)
    assert snapshot(site) == before
    assert [p.name for p in tmp_path.iterdir() if ".part" in p.name or ".old" in p.name] == []
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for place, words in (
        (mine, "is no gallery"),
        (home, "in one another"),
        (home / "site", "in one another"),
        (tmp_path, "in one another"),
    ):
        with pytest.raises(UserError, match=words):
            gallery(tmp_path / "less" if place == mine else home, place)
    assert snapshot(mine) == {"thesis.txt": b"years of work"}


def test_a_card_that_is_none_is_named(tmp_path, entry, capsys):
    home = tmp_path / "zoo"
    place = zoo.add(home, entry("decoder/x"))
    card = json.loads((place / "card.json").read_text())
    card["verdicts"] = [{"metric": "psnr", "passed": True}]
    data = json.dumps(card).encode()
    (place / "card.json").write_bytes(data)
    index = json.loads((home / "index.json").read_text())
    index["entries"]["decoder/x"]["files"]["card.json"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    (home / "index.json").write_text(json.dumps(index))
    assert main(["zoo", "gallery", str(home), "--out", str(tmp_path / "site")]) == 2
    assert "decoder/x/card.json: a verdict cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_the_command_says_where_the_site_is(tmp_path, home, capsys):
    assert main(["zoo", "gallery", str(home), "--out", str(tmp_path / "s"), "--title", "Ours"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "s" / "index.html")
    assert "Ours" in Page(tmp_path / "s" / "index.html").text
    zoo_without = tmp_path / "none"
    assert main(["zoo", "gallery", str(zoo_without), "--out", str(tmp_path / "t")]) == 2


# ---------------------------------------------------------------------------------------------------- in a browser

VISIBLE = "[...document.querySelectorAll('.entry')].filter(e => e.checkVisibility()).map(e => e.dataset.key)"
MARKS = "[...document.querySelectorAll('.chart')[0].querySelectorAll('.mark')].filter(e => e.checkVisibility()).length"
FRONT = "document.querySelectorAll('.chart')[0].querySelectorAll('.front').length"


def test_filters_order_and_front_follow_what_is_asked(site, browser: Browser):
    page = browser.open(site / "index.html")
    drawn = page.value(FRONT)
    assert drawn == 4  # small, far, big: two steps of two lines each, as without a script
    assert page.value(VISIBLE) == ["decoder/big", "decoder/far", "decoder/small", "decoder/worse", "unet/plain"]
    page.click("[name=text]")
    page.type("Tflite small")
    assert page.value(VISIBLE) == ["decoder/small"]
    assert (page.value(MARKS), page.value(FRONT)) == (1, 0)
    assert page.value("document.querySelector('output').value") == "Showing 1 of 5"
    page.click("[type=reset]")
    page.value("new Promise(done => setTimeout(done, 50))")
    assert len(page.value(VISIBLE)) == 5
    choose = "(name, value) => { const f = document.forms[0].elements[name]; f.value = value; f.dispatchEvent(new Event('input', {bubbles: true})); }"
    page.value(f"({choose})('component', '{DECODER}')")
    page.value(f"({choose})('size', '{3500 / 1024}')")
    page.value(f"({choose})('order', 'quality')")
    assert page.value(VISIBLE) == ["decoder/far", "decoder/small", "decoder/worse"]
    assert (page.value(MARKS), page.value(FRONT)) == (3, 2)
    page.value(f"({choose})('order', 'ratio')")
    assert page.value(VISIBLE) == ["decoder/far", "decoder/small", "decoder/worse"]
    page.value(f"({choose})('order', 'bytes')")
    assert page.value(VISIBLE) == ["decoder/small", "decoder/far", "decoder/worse"]
    page.value(f"({choose})('format', 'tflite')")
    assert page.value(VISIBLE) == ["decoder/small"]
    page.value(f"({choose})('text', 'nowhere')")
    assert page.value("document.querySelector('.nothing').checkVisibility()") is True
    assert page.errors() == []


def test_an_entry_opens_and_its_file_is_downloaded(site, browser: Browser, tmp_path):
    page = browser.open(site / "index.html")
    assert page.value("[...document.images].every(i => i.loading === 'lazy' || i.naturalWidth === 16)")
    page.value("document.querySelector('.entry[data-key=\"decoder/small\"] h3 a').focus()")
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    page.browser.wait("Page.loadEventFired", page.session)
    assert page.value("location.pathname").endswith("/site/entries/decoder/small/index.html")
    assert page.value("document.querySelector('.sample img').naturalWidth") == 16
    folder = tmp_path / "downloads"
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.click("a[download='model.tflite']")
    deadline = time.monotonic() + 30
    while not (folder / "model.tflite").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (folder / "model.tflite").read_bytes() == (site / "zoo/decoder/small/model.tflite").read_bytes()
    assert page.errors() == []


@pytest.mark.parametrize("where", ["index.html", "entries/decoder/small/index.html"])
def test_a_phone_shows_everything_without_scrolling_sideways(where, site, browser: Browser):
    page = browser.open(site / where, width=390, height=844)
    assert page.value("document.documentElement.scrollWidth") == 390
    assert page.errors() == []


def test_marks_are_links_that_the_keyboard_reaches(site, browser: Browser):
    page = browser.open(site / "index.html")
    assert page.value("document.querySelector('.plot .chart').getAttribute('role')") == "group"
    page.value("document.querySelector('.plot .chart a').focus()")
    page.press("Enter")
    page.browser.wait("Page.loadEventFired", page.session)
    assert page.value("location.pathname").endswith("/site/entries/decoder/big/index.html")
    assert page.errors() == []
