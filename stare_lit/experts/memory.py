"""What the scripted controllers remember of an episode: little, for they read everything else off the present geometry."""

from dataclasses import dataclass


@dataclass
class Memory:
    """One episode's.

    Attributes:
        closing: actions since the gripper was told to close.
        opening: actions since it was told to let the placed object go.
        end: which end of a peg is gripped, +1 or -1; 0 before the choice.
    """

    closing: int = 0
    opening: int = 0
    end: int = 0
