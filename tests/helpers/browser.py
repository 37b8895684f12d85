"""A headless browser: pages as they are drawn, for tests and for the README's picture."""

import json
import shutil
import subprocess
import tempfile
from html import escape, unescape
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
_LEAST_WIDTH = 500  # of a window; a frame in it may be narrower

# The page stands in a frame, which is as wide as asked for; the frame is measured from outside and runs nothing itself.
_FRAME = """<!DOCTYPE html><meta charset="utf-8">
<style>:root {{ color-scheme: light dark; }} body {{ margin: 0; }} iframe {{ display: block; border: 0;
 width: {width}px; height: {height}px; }}</style>
<iframe srcdoc="{page}"></iframe><pre id="measured"></pre>
<script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe").contentWindow, document_ = frame.document;
  document.getElementById("measured").textContent = JSON.stringify((({script}))(document_, frame));
}});
</script>"""


def draw(
    page: str, width: int, height: int, *, picture: Path, dark: bool = False, scale: int = 1, script: str = "() => null"
) -> Any:
    """Draw a page, and ask it something.

    Args:
        page: a whole page of HTML.
        width: of the page, in CSS pixels.
        height: of the page, in CSS pixels.
        picture: where the PNG goes; it is at least 500 CSS pixels wide.
        dark: what the page is told the reader prefers.
        scale: pixels of the picture for each CSS pixel.
        script: a JavaScript function of the page's document and window.

    Returns:
        What the function returns, through JSON.
    """
    assert BROWSER is not None, "no browser is installed; get one with: apt-get install chromium"
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder, "outer.html")
        outer.write_text(_FRAME.format(width=width, height=height, page=escape(page), script=script), encoding="utf-8")
        result = subprocess.run(
            [
                BROWSER,
                *_OPTIONS,
                f"--user-data-dir={folder}/profile",
                f"--window-size={max(width, _LEAST_WIDTH)},{height}",
                f"--force-device-scale-factor={scale}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--screenshot={picture}",
                "--dump-dom",
                outer.as_uri(),
            ],
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=True,
        )
    measured = result.stdout.rpartition('<pre id="measured">')[2].partition("</pre>")[0]
    return json.loads(unescape(measured))
