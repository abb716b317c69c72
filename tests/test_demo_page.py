"""The demo's page in headless Chromium, on a Show that is none, behind the real server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from deploy.demo.server import serve
from tests.fake_show import CHOICES, FakeShow, moving, playing
from tests.test_demo_pictures import encoded, png_bomb

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
REFUSED = re.compile(r"Failed to load resource")
"""The browser's own line for a status of 400 and more, and for a server that is not there."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture
def show() -> FakeShow:
    return FakeShow()


class Watched:
    """A page, and what it must not do: complain, or ask anybody but its server."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.add(re.sub(r"^(\w+:(//[^/]*)?).*", r"\1", request.url)))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not REFUSED.match(text):
            self.complaints.append(text)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def until(self, selector: str, text: str) -> None:
        """Waits until the element is visible and has the text in it."""
        self.page.locator(selector).filter(has_text=text, visible=True).first.wait_for(timeout=30_000)


@pytest.fixture
def opened(browser: Browser, show: FakeShow, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """The page on a playing show; a parameter is what the browser's context is to be like."""
    options: dict[str, Any] = getattr(request, "param", {})
    with playing(show, fps=10), serve(show, title="flowers") as serving:
        context = browser.new_context(**options)
        watched = Watched(context.new_page())
        watched.page.goto(serving.url)
        watched.page.locator("article li").nth(9).wait_for(timeout=30_000)
        yield watched
        context.close()
    assert watched.complaints == []
    assert watched.asked <= {serving.url.rstrip("/"), "blob:"}


def choose(watched: Watched, name: str, body: bytes, kind: str = "image/png") -> None:
    watched.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": body})


def drawn(watched: Watched) -> list[int]:
    """Width, height and the colour of the middle of what is on the stage."""
    code = """() => { const pen = document.getElementById("picture").getContext("2d");
        const {width, height} = pen.canvas;
        return [width, height, ...pen.getImageData(width / 2, height / 2, 1, 1).data] }"""
    found: list[int] = watched.page.evaluate(code)
    return found


def test_it_shows_the_live_picture_and_both_sides(opened: Watched) -> None:
    opened.until("#connection", "connected")
    assert opened.page.title() == "flowers · edgelab demo"
    assert drawn(opened)[:2] == [640, 480]
    for side, (precision, latency) in enumerate((("FP32", "4.20"), ("INT8", "1.90"))):
        lane = f"article:nth-child({side + 1})"
        assert opened.text(f"{lane} .precision") == precision
        assert opened.text(f"{lane} .ms") == latency
        assert opened.page.locator(f"{lane} li").count() == 5
        first = opened.page.locator(f"{lane} li .bar").first
        assert first.evaluate("bar => bar.style.getPropertyValue('--share')") == ("0.7", "0.65")[side]
    assert "INT8 2.21× as fast" in opened.text("#agreed")
    assert opened.text("#fps") == "25.0"
    assert "nothing measures power here" in opened.text("#results")


def test_watts_and_messages_as_they_come(opened: Watched, show: FakeShow) -> None:
    show.changes = {"watts": 9.87, "watts_of": "VDD_IN", "watts_missing": None}
    opened.until("#watts", "9.87 W")
    assert "VDD_IN" in opened.text("#watts-of")
    show.changes = {"state": "waiting", "message": "camera:0 is gone; plug it in"}
    opened.until("#message", "camera:0 is gone; plug it in")
    show.changes = {}
    opened.page.locator("#message").wait_for(state="hidden")


def test_names_from_elsewhere_are_text_and_no_page(opened: Watched, show: FakeShow) -> None:
    show.changes = {"source": "<img src=x onerror=alert(1)>", "message": "<b>bold</b>"}
    opened.until("#source", "<img src=x onerror=alert(1)>")
    opened.until("#message", "<b>bold</b>")


def test_a_chosen_picture_takes_the_stage_and_gives_it_back(opened: Watched) -> None:
    choose(opened, "red.png", encoded("PNG"))
    opened.until("#badge", "your picture: red.png")
    assert drawn(opened) == [61, 37, 200, 30, 40, 255]
    assert opened.text("#agreed").startswith("both say so")
    opened.page.click("#live")
    opened.until("#badge", "live")
    opened.page.wait_for_function("document.getElementById('picture').width === 640")


def test_a_dropped_picture(opened: Watched) -> None:
    code = """bytes => { const moved = new DataTransfer();
        moved.items.add(new File([new Uint8Array(bytes)], "dropped.gif", {type: "image/gif"}));
        const options = {dataTransfer: moved, bubbles: true, cancelable: true};
        for (const kind of ["dragover", "drop"]) document.body.dispatchEvent(
            new DragEvent(kind, options)) }"""
    opened.page.evaluate(code, list(encoded("GIF")))
    opened.until("#badge", "your picture: dropped.gif")


@pytest.mark.parametrize(
    ("name", "kind", "body", "said"),
    [
        ("cut.png", "image/png", encoded("PNG")[:60], "cannot be read as an image"),
        ("text.png", "image/png", b"no picture", "use JPEG, PNG, GIF, WebP or BMP"),
        ("paper.pdf", "application/pdf", b"%PDF-1.7", "'application/pdf' is not taken"),
    ],
)
def test_a_bad_file_is_told_and_the_page_goes_on(
    opened: Watched, name: str, kind: str, body: bytes, said: str
) -> None:
    choose(opened, name, body, kind)
    opened.until("#alert", said)
    assert opened.text("#badge") == "live"
    opened.page.click("#alert button")
    opened.page.locator("#alert").wait_for(state="hidden")
    choose(opened, "good.png", encoded("PNG"))
    opened.until("#badge", "your picture: good.png")


def test_a_picture_that_is_too_large_is_made_smaller_by_the_browser(opened: Watched) -> None:
    choose(opened, "large.png", png_bomb(5000, 4000))
    opened.until("#badge", "your picture: large.png")


def test_a_side_is_switched(opened: Watched, show: FakeShow) -> None:
    opened.page.locator("article:nth-child(1) select").select_option(label="int8 · openvino")
    opened.until("article:nth-child(1) .precision", "INT8")
    assert show.lanes[0] == CHOICES[3]
    opened.until("article:nth-child(1) .ms", "1.90")


def test_a_switch_that_fails_is_told_and_the_choice_goes_back(
    opened: Watched, show: FakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fake_show.CHOICES", CHOICES[:1])
    select = opened.page.locator("article:nth-child(2) select")
    show.changes = {"choices": CHOICES}
    select.select_option(label="fp32 · openvino")
    opened.until("#alert", "cannot run here; choose another")
    assert select.input_value() == '{"variant":"int8","backend":"onnxruntime"}'


def test_a_lost_connection_is_said_and_comes_back(browser: Browser, show: FakeShow) -> None:
    context = browser.new_context()
    watched = Watched(context.new_page())
    with playing(show):
        with serve(show, title="flowers") as serving:
            watched.page.goto(serving.url)
            watched.until("#connection", "connected")
        watched.until("#connection", "connection lost, trying again")
        choose(watched, "red.png", encoded("PNG"))
        watched.until("#alert", "cannot be reached")
        with serve(show, title="flowers", port=serving.port):
            watched.until("#connection", "connected")
            choose(watched, "red.png", encoded("PNG"))
            watched.until("#badge", "your picture: red.png")
    context.close()
    assert watched.complaints == []


def test_the_token_comes_from_the_address_and_leaves_it(browser: Browser, show: FakeShow) -> None:
    context = browser.new_context()
    watched = Watched(context.new_page())
    show.play(moving(1))
    with serve(show, title="flowers", token="a-token-of-this-test") as serving:
        watched.page.goto(f"{serving.url}#token=a-token-of-this-test")
        watched.until("#connection", "connected")
        assert watched.page.url == serving.url
        watched.page.reload()
        watched.until("#connection", "connected")
    context.close()
    assert watched.complaints == []


def test_without_the_token_the_page_asks_for_it(browser: Browser, show: FakeShow) -> None:
    context = browser.new_context()
    watched = Watched(context.new_page())
    show.play(moving(1))
    with serve(show, title="flowers", token="a-token-of-this-test") as serving:
        watched.page.goto(serving.url)
        for typed in ("a-wrong-token-of-this", "a-token-of-this-test"):
            watched.until("#ask", "This demo asks for its token")
            watched.page.fill("#token", typed)
            watched.page.keyboard.press("Enter")
        watched.until("#connection", "connected")
    context.close()
    assert watched.complaints == []


def test_uploads_alone_without_a_live_picture(browser: Browser, show: FakeShow) -> None:
    show.changes = {"state": "waiting", "source": "upload", "fps": None, "lane_fps": (None, None)}
    context = browser.new_context()
    watched = Watched(context.new_page())
    with serve(show, title="flowers") as serving:
        watched.page.goto(serving.url)
        watched.until("#empty", "Drop a picture here")
        watched.until("#connection", "connected")
        choose(watched, "red.png", encoded("PNG"))
        watched.until("#badge", "your picture: red.png")
        assert not watched.page.is_visible("#empty")
        assert not watched.page.is_visible("#live")
        watched.until("article:nth-child(2) .ms", "1.90")
    context.close()
    assert watched.complaints == []


@pytest.mark.parametrize("opened", [PHONE, {**PHONE, "color_scheme": "dark"}], indirect=True)
def test_it_fits_a_phone(opened: Watched, show: FakeShow) -> None:
    show.changes = {"source": "a-long-name-of-a-video-file-" * 8, "message": "word" * 60}
    opened.until("#message", "wordword")
    wide = opened.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    assert opened.page.is_visible("text=Take a photo")
    opened.page.set_input_files(
        "#camera", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": encoded("JPEG")}
    )
    opened.until("#badge", "your picture: p.jpg")


def test_the_keyboard_reaches_everything(opened: Watched) -> None:
    reached = []
    for _ in range(4):
        opened.page.keyboard.press("Tab")
        reached.append(opened.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached[0] == "file"
    assert reached.count("SELECT") == 2
