"""Public tasks of the paper, and small sets that are made here.

`task` says what a task is. `choices`, `winograd`, `questions`, `texts`,
`groups`, `truthfulqa` and `made_here` are the tasks, `item_files` reads tasks
of one's own. `registry` names all of them, and `answers` asks a model.
docs/tasks.md describes prompts, files and measures.
"""
