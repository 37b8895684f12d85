"""The colours of a contribution, the same on pages, on terminals and in pictures: blue for the query, orange against.

They are blue and vermillion of Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which the colour-blind tell
apart, and half as bright as white: both can be read on light and on dark grounds.
"""

from typing import TypeAlias

RGB: TypeAlias = tuple[int, int, int]

FOR: RGB = (0, 114, 178)
AGAINST: RGB = (213, 94, 0)


def colour_of(value: float) -> RGB:
    """The colour of what is for the query (0 and above) or against it.

    >>> colour_of(0.2) == FOR, colour_of(-0.2) == AGAINST
    (True, True)
    """
    return FOR if value >= 0 else AGAINST
