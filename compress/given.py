"""What a command line gives beside a recipe: photographs, a checkpoint, code of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from compress.plan import Plan
    from compress.recipe import Recipe

IMAGES_HELP = "A folder of photographs (for a text encoder: captions) instead of the recipe's source."
MODULE_HELP = "Code of your own instead of the component: package.module:function that returns the decoder."
ENCODER_HELP = "What makes the decoder's inputs: package.module:function, a component, or a component folder."

Module = Annotated[str | None, Parameter(help=MODULE_HELP)]
Encoder = Annotated[str | None, Parameter(help=ENCODER_HELP)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Flags that stand in for what a recipe names."""

    images: Annotated[Path | None, Parameter(help=IMAGES_HELP)] = None
    checkpoint: Annotated[
        Path | None, Parameter(help="A component folder (arch.json, weights.safetensors) instead of the preset.")
    ] = None
    module: Module = None
    encoder: Encoder = None


NOTHING = Given()


def planned(recipe: str, given: Given) -> "Plan":
    """The plan of a recipe, by name or path, with what was given in its places.

    Raises:
        UserError: the recipe, or what was given, cannot be used.
    """
    from compress.recipe import find, read_recipe

    path = find(recipe)
    look_at(path, given)
    return planned_with(read_recipe(path), given)


def look_at(recipe: Path, given: Given) -> None:
    """Refuse a damaged checkpoint before anything large is imported.

    Raises:
        UserError: the file and what is wrong with it.
    """
    from compress.headers import look
    from compress.located import read_document

    if given.checkpoint is not None:
        component = read_document(recipe).data.get("component")
        look(given.checkpoint, component.rpartition("/")[2] if isinstance(component, str) else "")


def planned_with(recipe: "Recipe", given: Given) -> "Plan":
    """The plan of a recipe that was read, with what was given in its places.

    Raises:
        UserError: what was given cannot be used.
    """
    from compress.own_code import named
    from compress.plan import make_plan, with_images
    from compress.store import Store, default_root

    code = None
    if given.module is not None or given.encoder is not None:
        code = named(
            recipe.component,
            module=given.module,
            encoder=given.encoder,
            checkpoint=given.checkpoint,
            store=Store(default_root()),
        )
    chosen = recipe if given.images is None else with_images(recipe, given.images)
    return make_plan(chosen, checkpoint=given.checkpoint, code=code)
