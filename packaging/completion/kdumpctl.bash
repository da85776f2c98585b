# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Completion of kdumpctl of kdump-service for bash; installed as /usr/share/bash-completion/completions/kdumpctl.
# Works without the functions of bash-completion. What the service does not say is not offered, quietly.

__kdumpctl_dumps() {
    kdumpctl list --quiet --no-legend --no-pager 2>/dev/null | awk '{ print $NF }'
}

__kdumpctl_settings() {
    kdumpctl config show --no-legend --no-pager 2>/dev/null | awk '{ print $1 }'
}

__kdumpctl_allowed() {
    kdumpctl config get --allowed "$1" 2>/dev/null
}

_kdumpctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local verb='' action='' word index options='' words='' files=''
    local verbs='status check list info show dump export debug delete keep arm disarm reload rebuild estimate
        reserve rehearse test config watch convert inspect log'
    COMPREPLY=()

    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ $word != -* ]]; then
            if [[ -z $verb ]]; then
                verb=$word
            elif [[ $verb == config && -z $action ]]; then
                action=$word
            fi
        fi
    done
    # bash takes "=" for a word of its own.
    if [[ $current == '=' ]]; then
        current=''
    elif [[ $previous == '=' ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi

    case $previous in
        --json) words='short pretty' ;;
        --debugger) words='drgn crash gdb' ;;
        --contents) words='kernel user everything' ;;
        --format) words='kdump elf flattened' ;;
        --compression) words='auto zstd zlib lz4 none' ;;
        -o | --output | --symbols) files=yes ;;
        --since | --until | -S | -U) words='today yesterday -1h -1d' ;;
        --level | --compression-level | --threads | -n) return ;;
        -p | --property)
            words=$(kdumpctl show 2>/dev/null | sed 's/=.*//' | sort -u)
            ;;
    esac
    if [[ -n $words || -n $files ]]; then
        if [[ -n $files ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
        else
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
        fi
        return
    fi

    case $verb in
        '') options='--help --version' words=$verbs ;;
        status | check) options='--json --no-pager' ;;
        estimate | rehearse | watch) options='--json' ;;
        list) options='--since --until -n --reverse --quiet --json --no-legend --no-pager' ;;
        info) options='--json --no-pager' ;;
        show) options='--property --value --json' ;;
        dump) options='--output --force' ;;
        export) options='--output --force --image' ;;
        debug) options='--debugger --symbols' ;;
        keep) options='--off' ;;
        reserve) options='--cma --dry-run --revert --yes --json' words=auto ;;
        test) options='--yes' ;;
        convert)
            options='--contents --level --format --compression --compression-level --threads --verify --force --json'
            files=yes
            ;;
        inspect) options='--verify --json' files=yes ;;
        log) options='--caller --json --no-pager' files=yes ;;
        config)
            case $action in
                '') words='show get set reset' ;;
                show) options='--origin --json --no-legend --no-pager' ;;
                get) options='--json --allowed' words=$(__kdumpctl_settings) ;;
                set)
                    if [[ $previous == set ]]; then
                        words=$(__kdumpctl_settings)
                    else
                        words=$(__kdumpctl_allowed "$previous")
                    fi
                    ;;
                reset) words=$(__kdumpctl_settings) ;;
            esac
            ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options --help" -- "$current")
        return
    fi
    case $verb in
        list | info | show | dump | export | debug | delete | keep | log) words=$(__kdumpctl_dumps) ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    if [[ -n $files ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$current")
    fi
}

complete -F _kdumpctl kdumpctl
