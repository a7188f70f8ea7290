"""In which group of --help an option stands, where it does not say so itself."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from memworker.cli.options import INPUT, MODEL, OUTPUT, TEXT, WRITING

SCOPE, SERVER = "Whose", "Server"
_GROUPS = {
    INPUT: "group context recency_half_life rerank where limit threshold mode include exclude check"
    " watch jsonl offset",
    TEXT: "text_field metadata expires_at name",
    MODEL: "model rerank_precision precision served_model_name truncate workers",
    WRITING: "table db distance on_conflict on_duplicate rejects durable wait discard delete"
    " delete_excluded allow_empty max_delete",
    OUTPUT: "dry_run quiet as_json",
    SCOPE: "user_id agent_id run_id",
    SERVER: "http host port uds api_key_file allowed_host cors_origin accept_token_ids max_body"
    " max_wait max_pending_tokens compress drain log_level access_log",
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names.split()}
# With no more options than this one list is easier to read.
_FEW = 8


class GroupedCommand(TyperCommand):
    """A verb whose options stand in groups, if it has many."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        options: list[Any] = [each for each in self.params if each.param_type_name == "option"]
        for each in options if len(options) > _FEW else ():
            each.rich_help_panel = each.rich_help_panel or _GROUP_OF.get(each.name or "")


def group_options(app: typer.Typer) -> None:
    """Let all verbs of an app, and of those within it, have their options in groups."""
    for verb in app.registered_commands:
        verb.cls = GroupedCommand
    for inner in app.registered_groups:
        if inner.typer_instance is not None:
            group_options(inner.typer_instance)
