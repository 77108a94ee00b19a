"""Settings: what a node's owner chooses, from five places, under one name each.

`fields` is the table of all settings and the single source of their names, rules, defaults and
documentation. `kinds` reads values, `readers` turns each source's text into a `Layer`, `layers`
resolves layers into settings: all pure. `environment` and `load` read files and variables.

Order of precedence, highest first: command line; environment; `.env` file; TOML file; what earlier
`meshnode join` command lines chose; default.
"""
