# Sourced by dist_train.sh and dist_test.sh: checks their arguments, puts the right python first on PATH, and sets
# installed_tools. Takes $usage and $required, the number of arguments, of which the last is that of the GPUs.
tools="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() {
    echo "$(basename "$0"): error: $1" >&2
    exit 2
}

if [[ " $* " == *" -h "* || " $* " == *" --help "* ]]; then
    echo "$usage"
    exit 0
fi
if (($# < required)); then
    echo "$usage" >&2
    exit 2
fi
[[ "${!required}" =~ ^[1-9][0-9]*$ ]] || fail "GPUS must be a number of GPUs on this machine, not '${!required}'"

find_tools='import importlib.util as u, os; s = u.find_spec("mmdet")
print(os.path.join(s.submodule_search_locations[0], ".mim", "tools") if s else "")'
for environment in "" "$tools/../.venv/bin:"; do
    installed_tools="$(PATH="$environment$PATH" python -c "$find_tools" 2>/dev/null)"
    if [[ -n "$installed_tools" ]]; then
        export PATH="$environment$PATH"
        break
    fi
done
[[ -n "$installed_tools" ]] || fail "no python with mmdet. Activate the environment that has it, or run 'make setup' in $(dirname "$tools")"

checks='import sys; sys.argv[0] = sys.argv.pop(1)
import run_installed
run_installed.check_config(sys.argv[1])
for checkpoint in sys.argv[2:]: run_installed.check_checkpoint(checkpoint)'
PYTHONPATH="$tools:$PYTHONPATH" python -c "$checks" "$0" "${@:1:required-1}" || exit 2

# The installed scripts quote nothing: for them words end at line breaks alone, and no word is a pattern.
IFS=$'\n'
set -f
