"""The checker behind `--jaxtyping-packages`: shapes and types of every annotated call, an int where a float is asked."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
