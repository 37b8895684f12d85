"""`python -m qrhead_rag.cli` is `qrhead`."""

from qrhead_rag.cli import app

if __name__ == "__main__":
    app(prog_name="qrhead")
