"""Models of training frameworks become files that the mesh serves.

- `formats`: what there is, which way leads where, and what runs code on the way (pure).
- `converting`: the flow of `meshnode convert`: plan, convert in a child process, measure, report.
- `isolation`: child processes with limits; `environments`: the interpreters that they run in.
- `child`: what runs there; `from_sklearn`, `from_keras`, `from_jax`, `from_torch`, `from_tensorflow`:
  one framework each; `measuring`: runs a finished file for its outputs, speed and memory.
- `agreement`: how far a result is from its original.
"""
