"""What an example prints, compared on any processor: words to the letter, decimal numbers nearly."""

import re

import pytest

DECIMAL = r"[-+]?\d+\.\d+"


def assert_same_output(printed: str, expected: str) -> None:
    """Words and whole numbers agree to the letter; decimal numbers to 0.002, since processors round differently."""
    assert re.sub(DECIMAL, "#", printed) == re.sub(DECIMAL, "#", expected)
    numbers = [float(number) for number in re.findall(DECIMAL, printed)]
    assert numbers == pytest.approx([float(number) for number in re.findall(DECIMAL, expected)], abs=0.002)
