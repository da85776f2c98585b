# SPDX-License-Identifier: LGPL-2.1-or-later
# Completion of kdumpctl of kdump-service for fish; installed as /usr/share/fish/vendor_completions.d/kdumpctl.fish.

function __kdumpctl_dumps
    kdumpctl list --quiet --no-legend --no-pager 2>/dev/null | awk '{ print $NF }'
end

function __kdumpctl_settings
    kdumpctl config show --no-legend --no-pager 2>/dev/null | awk '{ print $1 }'
end

function __kdumpctl_properties
    kdumpctl show 2>/dev/null | string replace -r '=.*' '' | sort -u
end

# The words that the setting before the cursor may be.
function __kdumpctl_values
    set -l words (commandline -opc)
    kdumpctl config get --allowed $words[-1] 2>/dev/null
end

function __kdumpctl_verb_is
    set -l words (commandline -opc)
    for word in $words[2..]
        if not string match -q -- '-*' $word
            contains -- $word $argv
            return
        end
    end
    return 1
end

function __kdumpctl_no_verb
    set -l words (commandline -opc)
    for word in $words[2..]
        if not string match -q -- '-*' $word
            return 1
        end
    end
end

# The words behind "config".
function __kdumpctl_config_words
    set -l words (commandline -opc)
    set -l at (contains -i -- config $words)
    or return 1
    set -e words[1..$at]
    test "$words" = "$argv"
end

complete -c kdumpctl -f
complete -c kdumpctl -n __kdumpctl_no_verb -l help -d 'Show help'
complete -c kdumpctl -n __kdumpctl_no_verb -l version -d 'Show the version'
complete -c kdumpctl -n __kdumpctl_no_verb -a status -d 'The state, armed or not, and why'
complete -c kdumpctl -n __kdumpctl_no_verb -a check -d 'Would a crash now be captured?'
complete -c kdumpctl -n __kdumpctl_no_verb -a list -d 'The crashes that this machine had'
complete -c kdumpctl -n __kdumpctl_no_verb -a info -d 'What is known of a crash'
complete -c kdumpctl -n __kdumpctl_no_verb -a show -d 'The same for programs'
complete -c kdumpctl -n __kdumpctl_no_verb -a dump -d 'Copy the memory image to a file'
complete -c kdumpctl -n __kdumpctl_no_verb -a export -d 'A bundle for support'
complete -c kdumpctl -n __kdumpctl_no_verb -a debug -d 'Open a dump in drgn, crash or gdb'
complete -c kdumpctl -n __kdumpctl_no_verb -a delete -d 'Delete a dump'
complete -c kdumpctl -n __kdumpctl_no_verb -a keep -d 'Protect a dump from the limits'
complete -c kdumpctl -n __kdumpctl_no_verb -a arm -d 'Load the crash kernel'
complete -c kdumpctl -n __kdumpctl_no_verb -a disarm -d 'Unload the crash kernel'
complete -c kdumpctl -n __kdumpctl_no_verb -a reload -d 'Read the configuration anew'
complete -c kdumpctl -n __kdumpctl_no_verb -a rebuild -d 'Load kernel and image anew'
complete -c kdumpctl -n __kdumpctl_no_verb -a estimate -d 'Memory and room that a capture needs'
complete -c kdumpctl -n __kdumpctl_no_verb -a reserve -d 'Set crashkernel= in the boot loader'
complete -c kdumpctl -n __kdumpctl_no_verb -a rehearse -d 'Crash and capture in a virtual machine'
complete -c kdumpctl -n __kdumpctl_no_verb -a test -d 'Crash this machine, as a proof'
complete -c kdumpctl -n __kdumpctl_no_verb -a config -d 'Show and change settings'
complete -c kdumpctl -n __kdumpctl_no_verb -a watch -d 'Print what changes'
complete -c kdumpctl -n __kdumpctl_no_verb -a convert -d 'Write a memory image anew'
complete -c kdumpctl -n __kdumpctl_no_verb -a inspect -d 'What a dump file holds'
complete -c kdumpctl -n __kdumpctl_no_verb -a log -d "The kernel's log of a dump"

complete -c kdumpctl -n '__kdumpctl_verb_is status check list info show estimate reserve rehearse watch convert inspect log' -l json -a 'short pretty' -d 'Print JSON'
complete -c kdumpctl -n '__kdumpctl_verb_is status check list info log' -l no-pager -d 'No pager'
complete -c kdumpctl -n '__kdumpctl_verb_is list' -l no-legend -d 'No column titles'
complete -c kdumpctl -n '__kdumpctl_verb_is list info show dump export debug delete keep' -ka '(__kdumpctl_dumps)'
complete -c kdumpctl -n '__kdumpctl_verb_is log' -F -a '(__kdumpctl_dumps)'
complete -c kdumpctl -n '__kdumpctl_verb_is list' -s S -l since -x -a 'today yesterday -1h -1d' -d 'Crashes from then on'
complete -c kdumpctl -n '__kdumpctl_verb_is list' -s U -l until -x -a 'today yesterday -1h -1d' -d 'Crashes up to then'
complete -c kdumpctl -n '__kdumpctl_verb_is list' -s n -x -d 'The newest N only'
complete -c kdumpctl -n '__kdumpctl_verb_is list' -s r -l reverse -d 'The newest first'
complete -c kdumpctl -n '__kdumpctl_verb_is list' -s q -l quiet -d 'Say nothing where there is no dump'
complete -c kdumpctl -n '__kdumpctl_verb_is show' -s p -l property -x -a '(__kdumpctl_properties)' -d 'This one only'
complete -c kdumpctl -n '__kdumpctl_verb_is show' -l value -d 'Without KEY='
complete -c kdumpctl -n '__kdumpctl_verb_is dump export' -s o -l output -r -F -d 'File'
complete -c kdumpctl -n '__kdumpctl_verb_is dump export convert' -l force -d 'Replace the file'
complete -c kdumpctl -n '__kdumpctl_verb_is export' -l image -d 'With the memory image'
complete -c kdumpctl -n '__kdumpctl_verb_is debug' -l debugger -x -a 'drgn crash gdb' -d 'Program'
complete -c kdumpctl -n '__kdumpctl_verb_is debug' -l symbols -r -F -d 'vmlinux of the kernel'
complete -c kdumpctl -n '__kdumpctl_verb_is keep' -l off -d 'Protect it no longer'
complete -c kdumpctl -n '__kdumpctl_verb_is reserve' -a auto -d 'What estimate recommends'
complete -c kdumpctl -n '__kdumpctl_verb_is reserve' -l cma -x -d 'Memory that processes may use until the crash'
complete -c kdumpctl -n '__kdumpctl_verb_is reserve' -l dry-run -d 'Show the change, and make none'
complete -c kdumpctl -n '__kdumpctl_verb_is reserve' -l revert -d 'Bring back what was there before'
complete -c kdumpctl -n '__kdumpctl_verb_is test reserve' -l yes -d 'Do not ask for a confirmation'

complete -c kdumpctl -n '__kdumpctl_config_words ""' -a show -d 'All settings'
complete -c kdumpctl -n '__kdumpctl_config_words ""' -a get -d 'The value of one'
complete -c kdumpctl -n '__kdumpctl_config_words ""' -a set -d 'Change one'
complete -c kdumpctl -n '__kdumpctl_config_words ""' -a reset -d 'Undo what was set'
complete -c kdumpctl -n '__kdumpctl_config_words show' -l origin -d 'With the file and line of each'
complete -c kdumpctl -n '__kdumpctl_config_words show' -l no-legend -d 'No column titles'
complete -c kdumpctl -n '__kdumpctl_config_words show' -l no-pager -d 'No pager'
complete -c kdumpctl -n '__kdumpctl_config_words show; or __kdumpctl_config_words get' -l json -a 'short pretty' -d 'Print JSON'
complete -c kdumpctl -n '__kdumpctl_config_words get' -l allowed -d 'The words that it may be'
complete -c kdumpctl -n '__kdumpctl_config_words get; or __kdumpctl_config_words set; or __kdumpctl_config_words reset' -ka '(__kdumpctl_settings)'
complete -c kdumpctl -n '__kdumpctl_verb_is config; and not __kdumpctl_config_words ""; and not __kdumpctl_config_words set; and contains -- set (commandline -opc)' -a '(__kdumpctl_values)'

complete -c kdumpctl -n '__kdumpctl_verb_is convert inspect' -F
complete -c kdumpctl -n '__kdumpctl_verb_is convert inspect' -l verify -d 'Every page'
complete -c kdumpctl -n '__kdumpctl_verb_is convert' -l contents -x -a 'kernel user everything' -d 'What to keep'
complete -c kdumpctl -n '__kdumpctl_verb_is convert' -l level -x -d 'What to leave out'
complete -c kdumpctl -n '__kdumpctl_verb_is convert' -l format -x -a 'kdump elf flattened' -d 'Format'
complete -c kdumpctl -n '__kdumpctl_verb_is convert' -l compression -x -a 'auto zstd zlib lz4 none' -d 'Compression'
complete -c kdumpctl -n '__kdumpctl_verb_is convert' -l compression-level -x -d 'Higher is smaller and slower'
complete -c kdumpctl -n '__kdumpctl_verb_is convert' -l threads -x -d 'Processes'
complete -c kdumpctl -n '__kdumpctl_verb_is log' -l caller -d 'With the task or processor of each line'
