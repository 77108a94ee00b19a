"""The recipe of an OCI image around a baked archive, as text. Pure."""

from __future__ import annotations

from typing import Final

BAKED_PLACE: Final = "/opt/meshnode/baked"
"""Where the models lie in an image: outside the data folder, which is a volume."""

_RECIPE: Final = """\
# Written by `meshnode bake --dockerfile`: a node with its models compiled and measured. Build it beside the archive:
#   docker build -t NAME .
# {base} is what the Dockerfile of meshnode's own repository makes; name another one with --build-arg BASE=IMAGE.
# What is baked holds for machines with the processor and packages that it was baked with; elsewhere the models are
# compiled at each start, and the log says so.
ARG BASE={base}
FROM $BASE
ADD --chown=0:0 {archive} {place}/
CMD ["join", "--models", "{place}", "--models-poll", "0"]
"""


def image_recipe(archive: str, version: str) -> str:
    """Return a Dockerfile.

    Args:
        archive: Name of the baked archive, in the same folder.
        version: Of meshnode, for the base image's tag.
    """
    name = f'["{archive}", "{BAKED_PLACE}/"]' if " " in archive else ""
    recipe = _RECIPE.format(base=f"meshnode:{version}", archive=archive, place=BAKED_PLACE)
    return recipe.replace(f"{archive} {BAKED_PLACE}/", name) if name else recipe
