"""`hubctl registry token, user, org`: who may read and write. All of them work while the registry runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.options import SIZE, SPAN, root_option
from hubctl.cli.output import Output, ago, human_bytes, json_option

if TYPE_CHECKING:
    from hubctl.registry.accounts import Accounts

_SCOPE = click.Choice(["read", "write"])
_FORMS: dict[str, Callable[[Any], str]] = {
    "created_at": lambda text: ago(datetime.fromisoformat(text)),
    "used_bytes": human_bytes,
    "quota_bytes": human_bytes,
}
_KEPT = {"repos": "repositories", "used_bytes": "keeps", "quota_bytes": "may keep"}


@click.group()
def token() -> None:
    """Keys that people and programs log in with."""


@token.command("create")
@root_option
@click.option("--user", required=True, help="Whose token; the user is made if new.")
@click.option("--scope", type=_SCOPE, default="write", show_default=True, help="What it may do.")
@click.option("--expires", type=SPAN, metavar="SPAN", help="Valid for so long: 30d, 12h. Default: for ever.")
@click.option("--label", default="token", show_default=True, help="What it is for, to know it again.")
@json_option
@click.pass_obj
def create_token_(output: Output, root: Path, user: str, scope: Any, expires: int | None, label: str) -> None:
    """Make a token and print it; it cannot be shown again.

    \b
    Examples:
      hubctl registry token create --root ~/registry --user alice
      hubctl registry token create --root ~/registry --user server --scope read --expires 90d
      hubctl registry token create --root ~/registry --user alice | hubctl login --token-stdin
    """
    from hubctl.registry.auth import create_token

    made = create_token(root, user, scope=scope, label=label, expires_s=expires)
    output.result({"user": user, "scope": scope, "token": made}, text=made, quiet="token")


@token.command("list")
@root_option
@click.option("--user", help="Only of this user.")
@json_option
@click.pass_obj
def list_tokens(output: Output, root: Path, user: str | None) -> None:
    """List tokens by their ids; the tokens themselves are not kept.

    \b
    Examples:
      hubctl registry token list --root ~/registry --user alice
    """
    with _accounts(root) as accounts:
        rows = accounts.tokens(user)
    columns = ("id", "user", "label", "scope", "created_at", "expires_at")
    output.table(rows, {name: name.removesuffix("_at") for name in columns}, formats=_FORMS)


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@root_option
@json_option
@click.pass_obj
def revoke_token(output: Output, token_id: str, root: Path) -> None:
    """Make the token with this id worthless. Upload links that were given out stay valid for some hours.

    \b
    Examples:
      hubctl registry token revoke 3f2a91c0 --root ~/registry
    """
    with _accounts(root) as accounts:
        owner = accounts.revoke_token(token_id)
    output.result({"revoked": token_id, "user": owner}, text=f"revoked a token of {owner}", quiet="revoked")


@click.group()
def user() -> None:
    """People and programs that own repositories."""


@user.command("add")
@click.argument("name")
@root_option
@json_option
@click.pass_obj
def add_user(output: Output, name: str, root: Path) -> None:
    """Add a user; `token create` does so too.

    \b
    Examples:
      hubctl registry user add alice --root ~/registry
    """
    with _accounts(root, create=True) as accounts:
        accounts.add(name)
    output.result({"user": name}, text=f"added {name}", quiet="user")
    output.note(f"  next: hubctl registry token create --root {root} --user {name}")


@user.command("list")
@root_option
@json_option
@click.pass_obj
def list_users(output: Output, root: Path) -> None:
    """List the users.

    \b
    Examples:
      hubctl registry user list --root ~/registry
    """
    with _accounts(root) as accounts:
        rows = accounts.all(is_org=False)
    output.table(rows, {"name": "name", **_KEPT, "created_at": "created"}, formats=_FORMS)


@user.command("remove")
@click.argument("name")
@root_option
@json_option
@click.pass_obj
def remove_user(output: Output, name: str, root: Path) -> None:
    """Remove a user and all their tokens; refused while repositories are theirs.

    \b
    Examples:
      hubctl registry user remove alice --root ~/registry
    """
    _remove(output, root, name)


@click.group()
def org() -> None:
    """Organisations: owners of repositories that several people share."""


@org.command("add")
@click.argument("name")
@root_option
@json_option
@click.pass_obj
def add_org(output: Output, name: str, root: Path) -> None:
    """Add an organisation, with nobody in it.

    \b
    Examples:
      hubctl registry org add studio --root ~/registry
    """
    with _accounts(root, create=True) as accounts:
        accounts.add(name, is_org=True)
    output.result({"org": name}, text=f"added {name}", quiet="org")
    output.note(f"  next: hubctl registry org join {name} USER --root {root}")


@org.command("join")
@click.argument("name")
@click.argument("member", metavar="USER")
@root_option
@click.option("--role", type=_SCOPE, default="write", show_default=True, help="What the user may do there.")
@json_option
@click.pass_obj
def join(output: Output, name: str, member: str, root: Path, role: Any) -> None:
    """Put USER into an organisation, or change what the user may do there.

    \b
    Examples:
      hubctl registry org join studio alice --root ~/registry
      hubctl registry org join studio server --role read --root ~/registry
    """
    with _accounts(root) as accounts:
        accounts.set_member(name, member, role)
    output.result(
        {"org": name, "user": member, "role": role}, text=f"{member} may {role} in {name}", quiet="user"
    )


@org.command("leave")
@click.argument("name")
@click.argument("member", metavar="USER")
@root_option
@json_option
@click.pass_obj
def leave(output: Output, name: str, member: str, root: Path) -> None:
    """Take USER out of an organisation.

    \b
    Examples:
      hubctl registry org leave studio alice --root ~/registry
    """
    with _accounts(root) as accounts:
        accounts.set_member(name, member, None)
    output.result({"org": name, "user": member}, text=f"{member} left {name}", quiet="user")


@org.command("list")
@root_option
@json_option
@click.pass_obj
def list_orgs(output: Output, root: Path) -> None:
    """List the organisations and who is in them.

    \b
    Examples:
      hubctl registry org list --root ~/registry
    """
    with _accounts(root) as accounts:
        rows = accounts.all(is_org=True)
    output.table(
        rows,
        {"name": "name", "members": "members", **_KEPT, "created_at": "created"},
        formats={**_FORMS, "members": lambda m: ", ".join(f"{name} ({role})" for name, role in m.items())},
    )


@org.command("remove")
@click.argument("name")
@root_option
@json_option
@click.pass_obj
def remove_org(output: Output, name: str, root: Path) -> None:
    """Remove an organisation; refused while repositories are its own.

    \b
    Examples:
      hubctl registry org remove studio --root ~/registry
    """
    _remove(output, root, name)


@click.command()
@click.argument("name")
@click.argument("size", type=SIZE, required=False)
@root_option
@json_option
@click.pass_obj
def quota(output: Output, name: str, size: int | None, root: Path) -> None:
    """Limit what the repositories of a user or organisation keep; without SIZE, lift the limit.

    Every file of every commit counts, each content once. Deleting a file from a branch frees nothing: delete
    it from the history (`permanently_delete_lfs_files`), squash, or delete the repository.

    \b
    Examples:
      hubctl registry quota alice 20GB --root ~/registry
      hubctl registry quota alice --root ~/registry
    """
    with _accounts(root) as accounts:
        accounts.set_quota(name, size)
    may = "as much as there is room for" if size is None else human_bytes(size)
    output.result({"name": name, "quota_bytes": size}, text=f"{name} may keep {may}", quiet="quota_bytes")


def _remove(output: Output, root: Path, name: str) -> None:
    with _accounts(root) as accounts:
        accounts.remove(name)
    output.result({"removed": name}, text=f"removed {name}", quiet="removed")


@contextmanager
def _accounts(root: Path, *, create: bool = False) -> Iterator[Accounts]:
    from hubctl.registry.accounts import Accounts
    from hubctl.registry.auth import opened

    with opened(root, must_exist=not create) as db:
        yield Accounts(db)
