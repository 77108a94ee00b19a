"""What the client's calls about deployments return; see `meshnode.client.results`."""

from __future__ import annotations

from typing import Any

import msgspec

from meshnode.client.results import ModelInfo


class DeploymentChange(
    msgspec.Struct, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}
):
    """One thing in which two revisions of a deployment differ.

    Attributes:
        key: Such as `replicas`, `where.regions`, `env.MODE` or `version 2`.
        before: Its value before; None where it was not there.
        after: Its value after; None where it is gone.
    """

    key: str
    before: Any = None
    after: Any = None


class DeploymentDiff(
    msgspec.Struct, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}
):
    """In what two revisions of a deployment differ.

    Attributes:
        name: The deployment's.
        before: Id of the first; None where there was none.
        after: Id of the second.
        changes: In what they differ; none if they ask for the same.
    """

    name: str
    before: str | None = None
    after: str = ""
    changes: tuple[DeploymentChange, ...] = ()


class DeploymentRevision(msgspec.Struct, frozen=True, kw_only=True):
    """One revision of a deployment.

    Attributes:
        id: Names it.
        at: When it was made, in RFC 3339.
        by: Who made it: an API key, or the node whose owner did.
        node: Name of the node that signed it.
        node_id: That node's id.
        summary: What it changed, in one line.
        base: The revision that it was made from; None where nobody said, `none` where there was none.
        restores: The earlier revision that it wrote anew, or None.
        overwritten_by: The revision that took its place without its author knowing of it, or None.
        counts: Whether it is the one that counts.
    """

    id: str
    at: str = ""
    by: str = ""
    node: str = ""
    node_id: str = ""
    summary: str = ""
    base: str | None = None
    restores: str | None = None
    overwritten_by: str | None = None
    counts: bool = False


class DeploymentEdit(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a change of a deployment, or would.

    Attributes:
        name: The deployment's.
        revision: Id of the revision that counts afterwards.
        changed: Whether anything changed, or would.
        changes: What.
        files: `known`; `needed` where a dry run cannot say more without the files of the model.
        warnings: What people should know.
        model: The model's entry; None of a dry run.
        id: The deployment's, by which it can be named too.
        is_new: Whether nothing was deployed under its name before.
    """

    name: str
    revision: str = ""
    changed: bool = False
    changes: tuple[DeploymentChange, ...] = ()
    files: str = "known"
    warnings: tuple[str, ...] = ()
    model: ModelInfo | None = None
    id: str = ""
    is_new: bool = msgspec.field(name="new", default=False)
