"""Settings as a command reads them: what is wrong with them is one line."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pydantic import ValidationError

    from service.settings import Settings


def read_settings() -> "Settings":
    """The settings of the environment. Raises ClickException, naming every variable that is wrong."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        raise click.ClickException(_explain(error)) from None
    except SettingsError as error:
        raise click.ClickException(
            f"{error}: a list is written as JSON, as in NOTELLM_WORKER__ADDRESSES='[\"127.0.0.1:9100\"]'"
        ) from None


def _explain(error: "ValidationError") -> str:
    """Every problem with the name of its variable, in one line, without the values: one may be a password."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        place, rule = detail["loc"], detail["msg"].removeprefix("Value error, ")
        name = "NOTELLM_" + "__".join(str(part) for part in place).upper()
        if detail["type"] == "extra_forbidden":
            rule = f"unknown setting {name}; `notellm settings` lists the known ones"
        problems.append(f"{name}: {rule}" if place and "NOTELLM_" not in rule else rule)
    return "; ".join(problems)
