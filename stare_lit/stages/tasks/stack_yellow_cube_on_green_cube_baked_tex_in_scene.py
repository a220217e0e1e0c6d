"""StackYellowCubeOnGreenCubeBakedTexInScene-v1: the other stack of the same scenes (ours)."""

from dataclasses import replace

from stare_lit.stages.tasks.stack_green_cube_on_yellow_cube_baked_tex_in_scene import SPEC as GREEN_ON_YELLOW

SPEC = replace(GREEN_ON_YELLOW, name="StackYellowCubeOnGreenCubeBakedTexInScene-v1")
