"""Draw the README's picture of an explanation: the handbook, ranked by the embedded model, as a notebook shows it.

    .venv/bin/python notebooks/picture.py

It needs a browser (apt-get install chromium) and the extra `plot`, which brings Pillow, and writes explanation.png.
"""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qrhead_rag import QRRetriever  # noqa: E402
from qrhead_rag.demo import load_handbook  # noqa: E402
from tests.helpers.browser import draw  # noqa: E402

QUERY = "May I ride in the elevator together with my filled dewar?"
PICTURE = ROOT / "notebooks" / "explanation.png"
WIDTH, SHOWN, SCALE = 860, 3, 2
LOWEST = "document => Math.ceil(document.querySelector('.qrhead-cards').getBoundingClientRect().bottom)"


def main() -> None:
    """Rank, explain, draw, crop."""
    passages, _ = load_handbook()
    retriever = QRRetriever.from_pretrained(device="cpu")
    page = retriever.rank(QUERY, passages, top_n=SHOWN).explain().to_html()
    lowest = draw(page, WIDTH, 2000, picture=PICTURE, scale=SCALE, script=LOWEST)
    picture = Image.open(PICTURE).convert("RGB").crop((0, 0, WIDTH * SCALE, (lowest + 16) * SCALE))
    picture.quantize(128).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
