"""A web application in which people write and rank a model's training data.

`schema.py` and `store.py` are the database, and `migrations/` its versions.
`people/` has users and sessions, `assignment.py` decides who labels what, and
`labels.py` stores drafts and labels. `forms.py` has the fields of each task,
and `web/` the pages. `project.py` reads a project, `quality.py` measures
agreement, `screening.py` compares candidates with the cuts, and `export.py`
writes training data. `commands/` is the command line.
"""
