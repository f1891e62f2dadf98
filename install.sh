#!/bin/sh
# Installs MindGateway for this user, from this clone. See usage below, or run it with --help.
# Everything stands in main(), which is called on the last line: half a file does nothing.

main() {
    set -eu

    usage() {
        cat <<'EOF'
usage: ./install.sh [--agent] [--dry-run]            install, or bring an installation up to date
       ./install.sh --quickstart [ARGUMENTS]         install, then run `mindgw quickstart ARGUMENTS`
       ./install.sh --uninstall [--purge] [--dry-run]

  --agent       the slim half for a GPU box: `mindgw agent` and `mindgw version`, no server
  --quickstart  a server, an agent, an engine and a first streamed answer; stays up until Ctrl-C
  --uninstall   remove the program and its link; keys, settings and the database stay
  --purge       with --uninstall: remove those too
  --dry-run     say what would be done, do nothing
  --help        this text

Needs Python 3.11 or newer; no root. The program goes into an environment of its own, so the system's Python stays as it is.
Run it again whenever you like: what is up to date is left alone.

  MINDGW_HOME      where the program goes         (default: mindgw-program in $XDG_DATA_HOME or ~/.local/share)
  MINDGW_PYTHON    the interpreter to use         (default: the first that will do)
  MINDGW_BIN       where the command is linked    (default: $XDG_BIN_HOME or ~/.local/bin)
  HTTPS_PROXY, NO_PROXY, PIP_INDEX_URL, SSL_CERT_FILE and their kin are honoured.
EOF
    }
    say() { printf '%s\n' "$*" >&2; }
    fail() { say "error: $1"; [ $# -lt 2 ] || say "  $2"; exit "${3:-1}"; }
    misused() { fail "$1" "./install.sh --help shows how" 2; }
    # do it, or say that it would be done
    run() { if [ -n "$dry" ]; then say "would run: $*"; else "$@"; fi; }

    what=install lock=server project='' dry='' purge='' quickstart=''
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage; exit 0 ;;
            --agent) lock=agent project=/agent ;;
            --uninstall) what=uninstall ;;
            --purge) purge=1 ;;
            --dry-run) dry=1 ;;
            --quickstart) quickstart=1; shift; break ;;
            *) misused "there is no option $1" ;;
        esac
        shift
    done
    [ -z "$purge" ] || [ "$what" = uninstall ] || misused "--purge goes with --uninstall"
    [ -z "$quickstart" ] || [ "$what$lock" = installserver ] || misused "--quickstart goes with neither --agent nor --uninstall"
    [ -n "${HOME:-}" ] || fail "HOME is not set" "it says where a program of yours may go"

    share=${XDG_DATA_HOME:-$HOME/.local/share}
    home=${MINDGW_HOME:-$share/mindgw-program}
    bin=${MINDGW_BIN:-${XDG_BIN_HOME:-$HOME/.local/bin}}
    link=$bin/mindgw
    here=$(cd "$(dirname "$0")" && pwd)

    # whether the command there is not one that this script made
    foreign() { { [ -e "$link" ] || [ -L "$link" ]; } && [ "$(readlink "$link" || true)" != "$home/env/bin/mindgw" ]; }

    # remove a directory, but only one that holds what says that it is ours
    discard() {
        directory=$1; shift
        for sign in "$@"; do
            [ -e "$directory/$sign" ] || continue
            say "removing $directory"
            run rm -rf -- "$directory"
            return
        done
    }

    uninstall() {
        foreign || { [ ! -L "$link" ] || run rm -f -- "$link"; }
        discard "$home" env/pyvenv.cfg
        if [ -n "$purge" ]; then
            discard "${MINDGW_DATA_DIR:-$share/mindgw}" config.yaml mindgw.db serve.lock ca.key
            discard "${MINDGW_AGENT_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/mindgw-agent}" agent.json agent.key agent.lock
            discard "${XDG_CONFIG_HOME:-$HOME/.config}/mindgw" contexts.json credentials.json
            say "gone; entries that a keyring of the desktop holds under the name mindgw stay"
        else
            say "removed; settings, keys and the database stay (--purge removes them)"
        fi
    }

    # the slim half has no command of its own name: the server's distribution owns that one
    write_command() {
        cat >"$home/env/bin/mindgw" <<EOF
#!$home/env/bin/python
from mindgw_agent.cli import main
raise SystemExit(main())
EOF
        chmod +x "$home/env/bin/mindgw"
    }

    install() {
        [ -f "$here/requirements/$lock.lock" ] || fail "install.sh stands alone" "run it from a clone of the repository: git clone … && cd mindgw && ./install.sh"
        ! foreign || fail "$link exists and is not ours" "move it away, or set MINDGW_BIN to another directory"
        python=${MINDGW_PYTHON:-$("$here/scripts/python")}
        run mkdir -p "$home" "$bin"
        run env MINDGW_PYTHON="$python" "$here/scripts/env" "$home/env" "$lock" "$here$project"
        [ "$lock" = server ] || run write_command
        run ln -sfn "$home/env/bin/mindgw" "$link"
        [ -n "$dry" ] || say "installed mindgw $("$link" version --quiet 2>/dev/null || true) as $link"
        case ":$PATH:" in
            *":$bin:"*) ;;
            *) say "$bin is not on your PATH; add this to your shell's profile:  export PATH=\"$bin:\$PATH\"" ;;
        esac
    }

    "$what"
    [ -z "$quickstart" ] || run exec "$home/env/bin/mindgw" quickstart "$@"
}

main "$@"
