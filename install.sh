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
    remove() { if [ -n "$dry" ]; then say "would remove $1"; else rm -rf -- "$@"; fi; }

    unset CDPATH
    what=install lock=server project='' program=mindgw dry='' purge='' quickstart=''
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage; exit 0 ;;
            --agent) lock=agent project=/agent program=mindgw-agent ;;
            --uninstall) what=uninstall ;;
            --purge) purge=1 ;;
            --dry-run) dry=1 ;;
            --quickstart) quickstart=1; shift; break ;;
            *) misused "there is no option $1" ;;
        esac
        shift
    done
    # what follows --quickstart is for that, but what this script must not overlook
    for word do
        shift
        case $quickstart$word in
            1--help | 1-h) usage; exit 0 ;;
            1--dry-run) dry=1 ;;
            1--agent | 1--uninstall | 1--purge) misused "--quickstart goes without $word" ;;
            *) set -- "$@" "$word" ;;
        esac
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
    foreign() {
        [ -e "$link" ] || [ -L "$link" ] || return 1
        case $(readlink "$link") in "$home/env/bin/mindgw" | "$home/env/bin/mindgw-agent") return 1 ;; esac
    }

    # the processes of this installation, in one line
    running() {
        if [ -e /proc/self/cmdline ]; then
            # shellcheck disable=SC2062 # what to look for comes on stdin, or grep would find itself; this is no pattern
            echo "$home/env/bin/" | grep -lsF -f - /proc/[0-9]*/cmdline | tr -dc '0-9\n'
        else
            ps -A -o pid= -o args= | while read -r pid words; do case $words in "$home"/env/bin/*) echo "$pid" ;; esac; done
        fi | xargs
    }

    # DIRECTORY SIGNS NAMES FOLDERS: takes the names (and the signs) out of a directory that holds all signs of being ours, and says
    # what stays. The signs go last, so that what breaks off can be done again.
    sweep() (
        [ -d "$1" ] && cd -P -- "$1" || exit 0
        own=$(cd -P -- "$HOME" && pwd)
        stays() { say "left as it is: $1 ($2)"; exit 0; }
        case $PWD in / | "$own") stays "$1" "what is in it cannot be told from the rest of it" ;; esac
        for sign in $2; do [ -f "$sign" ] || stays "$1" "there is no $sign in it, so it is not known to be ours"; done
        # shellcheck disable=SC2046,SC2086 # lists of patterns without spaces; what they match may have some
        if [ -n "$dry" ]; then say "would remove from $PWD:" $(ls -d $3 $2 2>/dev/null); exit 0; fi
        say "removing what is ours from $1"
        # shellcheck disable=SC2086
        rm -f -- $3 $2 || true
        for folder in $4; do rmdir "$folder" 2>/dev/null || true; done
        rmdir -- "$PWD" 2>/dev/null || find "$PWD" ! -type d | sed 's/^/left, not ours: /' >&2
    )

    # only what this script made: scripts/env puts a stamp into it
    sweep_program() {
        [ -e "$home/env" ] || return 0
        [ -f "$home/env/.stamp" ] || { say "left as it is: $home/env (it has no .stamp, so this script did not make it)"; return; }
        remove "$home/env" "$home"/env.tools.??????
        [ -n "$dry" ] || rmdir -- "$home" 2>/dev/null || say "left, not ours: what else is in $home"
    }

    uninstall() {
        pids=$(running)
        [ -z "$pids" ] || fail "the program still runs: process $pids" "end it first: kill $pids (or systemctl stop mindgw mindgw-agent)"
        foreign || { [ ! -L "$link" ] || remove "$link"; }
        sweep_program
        if [ -n "$purge" ]; then
            sweep "${MINDGW_DATA_DIR:-$share/mindgw}" "identity.key pepper ca.pem" \
                "config.yaml ca.key server.key server.pem sealing.key signing.key serve.lock instance \
                mindgw.db mindgw.db-wal mindgw.db-shm mindgw.db-journal backups/mindgw-*.db audit.end audit/20??-??-??.jsonl \
                templates/mindgw.service templates/mindgw-agent.service templates/nginx.conf templates/Caddyfile \
                templates/config.example.yaml templates/config.dev.yaml templates/config.staging.yaml templates/config.production.yaml \
                templates/gateway.dev.yaml templates/gateway.staging.yaml templates/gateway.production.yaml \
                quickstart/server.log quickstart/agent.log quickstart/embedded-engine.log quickstart/tiny-babbler.gguf quickstart/join-token \
                quickstart/agent/agent.json quickstart/agent/agent.key quickstart/agent/agent.lock quickstart/agent/status.json \
                quickstart/agent/outbox quickstart/agent/outbox.*" \
                "quickstart/agent quickstart audit backups templates"
            sweep "${MINDGW_AGENT_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/mindgw-agent}" "agent.json agent.lock" "agent.key status.json outbox outbox.*" ""
            sweep "${XDG_CONFIG_HOME:-$HOME/.config}/mindgw" contexts.json credentials.json ""
            kept="entries that a keyring of the desktop holds under the name mindgw"
        else
            kept="settings, keys and the database (--purge removes them)"
        fi
        if [ -n "$dry" ]; then say "would keep $kept"; else say "removed; kept: $kept"; fi
    }

    install() {
        [ -f "$here/requirements/$lock.lock" ] || fail "install.sh stands alone" "run it from a clone of the repository: git clone … && cd mindgw && ./install.sh"
        ! foreign || fail "$link exists and is not ours" "move it away, or set MINDGW_BIN to another directory"
        [ ! -e "$home/env" ] || [ -f "$home/env/.stamp" ] || fail "$home/env exists and is not ours" "move it away, or set MINDGW_HOME to another directory"
        python=$("$here/scripts/python")
        run mkdir -p "$home" "$bin"
        run env MINDGW_PYTHON="$python" "$here/scripts/env" "$home/env" "$lock" "$here$project"
        run ln -sfn "$home/env/bin/$program" "$link"
        if [ -z "$dry" ]; then
            version=$("$link" version) || fail "$link does not run" "its own words stand above; ./install.sh --uninstall, then install anew"
            say "installed mindgw ${version##* } as $link"
        fi
        case ":$PATH:" in
            *":$bin:"*) ;;
            *) say "$bin is not on your PATH; add this to your shell's profile:  export PATH=\"$bin:\$PATH\"" ;;
        esac
    }

    "$what"
    [ -z "$quickstart" ] || run exec "$home/env/bin/mindgw" quickstart "$@"
}

main "$@"
