"""The pages of docs/ that are made from code. `python -m infra.documentation` writes all of them."""
