#!/usr/bin/env bash
# Sets up .venv if it is missing, then runs linter, formatter, type checker and the whole test suite.
# Arguments go to pytest: ./scripts/test.sh -m "not slow", ./scripts/test.sh tests/model
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
