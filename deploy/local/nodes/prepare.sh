#!/usr/bin/env bash
# Gives a machine the pinned versions, or says what it has instead. Repeating it changes nothing.
set -euo pipefail

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=/dev/null
. "$folder/env.sh"

if [ "$SHARE_DIST_MAKE_ENVIRONMENT" = 1 ] && [ ! -e "$SHARE_DIST_ENVIRONMENT/.share-dist" ]; then
  command -v uv >/dev/null || export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  uv venv --quiet --allow-existing --python "$SHARE_DIST_PYTHON" "$SHARE_DIST_ENVIRONMENT"
  # shellcheck disable=SC2086
  uv pip install --quiet --python "$SHARE_DIST_ENVIRONMENT/bin/python" $SHARE_DIST_REQUIREMENTS
  touch "$SHARE_DIST_ENVIRONMENT/.share-dist"
fi

"$SHARE_DIST_ENVIRONMENT/bin/python" - <<'PYTHON'
import os, platform, sys
from importlib.metadata import PackageNotFoundError, version

def found(package):
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "nothing"

has = {"PYTHON": platform.python_version(), "RAY": found("ray"), "TORCH": found("torch"), "RELEASE": found("share-dist")}
wrong = [f"{name.lower()}: {has[name]} here, {os.environ['SHARE_DIST_' + name]} where the cluster was planned" for name in has if has[name] != os.environ["SHARE_DIST_" + name]]
if wrong:
    sys.exit(f"{platform.node()} cannot join: {'; '.join(wrong)}. Install these versions into {sys.prefix}, or plan the cluster anew with `share-dist cluster init` on a machine that has what is here")
PYTHON

# Ray stops a machine with `ray stop` in a login shell, and succeeds also where there is no such command
line=". \"\$HOME/${folder#"$HOME"/}/env.sh\""
grep -qsxF "$line" "$HOME/.bashrc" || printf '%s\n' "$line" >>"$HOME/.bashrc"
