"""The one exception for a user's mistake."""


class UserError(Exception):
  """A mistake of the user's: shown as at most three lines, exit status 2.

  The text says what is wrong, with file, line or field, and the remedy.
  """

  def __init__(
    self,
    problem: str,
    *,
    file: str | None = None,
    line: int | None = None,
    field: str | None = None,
    remedy: str = "",
  ):
    where = "" if file is None else str(file)
    if line is not None:
      where += f":{line}"
    if field is not None:
      where += f"{' ' if where else ''}[{field}]"
    text = f"{where}: {problem}" if where else problem
    if remedy:
      text += f"\n  remedy: {remedy}"
    super().__init__(text)
    self.problem, self.file, self.line = problem, file, line
    self.field, self.remedy = field, remedy
