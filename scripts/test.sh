#!/usr/bin/env bash
# Sets up .venv if it is missing, then runs linter, formatter, type checker and the whole test suite, the last two
# side by side. Arguments go to pytest: ./scripts/test.sh -m "not slow", ./scripts/test.sh -n 0 tests/model
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .

types=$(mktemp)
trap 'rm -f "$types"' EXIT
mypy > "$types" 2>&1 &
mypy=$!
workers=$(($(nproc) < 4 ? $(nproc) : 4))  # each needs about 4 GB
status=0
python -m pytest -n "$workers" --dist loadgroup --no-loadscope-reorder "$@" || status=$?
wait "$mypy" || status=$?
cat "$types"
exit "$status"
