"""Tests of tdmer. With ``--jaxtyping-packages=tdmer,tests.check`` types and shapes are checked."""

from beartype import BeartypeConf, beartype

# By PEP 484 an int may stand for a float.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
