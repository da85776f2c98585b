#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The capture image of kdump-service: what kdump-capture.service needs, and nothing of the crashed system.
#
# Included only by `kdump-service build-image`, which says in KDUMP_SERVICE_FILES where the list of files is that a
# capture loads, one path a line (it finds them by running one). Comes last, to take out again what other
# modules bring for a boot into a root file system.

# dracut's own variables.
# shellcheck disable=SC2154

check() {
    [[ -r ${KDUMP_SERVICE_FILES-} ]] || return 1
    require_binaries python3 systemctl mount || return 1
    return 255
}

depends() {
    echo systemd systemd-journald systemd-udevd udev-rules kernel-modules
}

install() {
    local -a files libraries
    local unit name

    mapfile -t files < "$KDUMP_SERVICE_FILES"
    inst_multiple "${files[@]}"
    # Extension modules are not executable everywhere (Debian), and dracut looks at what executables need alone. By
    # their own names (sonames), which the list of what is mapped does not have.
    mapfile -t libraries < <(printf '%s\n' "${files[@]}" | grep '\.so\(\.\|$\)' \
        | xargs --no-run-if-empty ldd 2> /dev/null | sed -n 's/.*=> \(\/[^ ]*\) (.*/\1/p' | sort -u)
    inst_multiple "${libraries[@]}"
    inst_multiple python3 kdump-service systemctl journalctl mount umount rm sleep

    for name in kdump-capture.target kdump-capture.service; do
        inst_simple "$systemdsystemunitdir/$name"
    done
    inst_multiple -o "$systemdsystemconfdir/kdump-capture.service.d/*.conf" \
        "$systemdsystemunitdir/kdump-capture.service.d/*.conf"
    inst_multiple -o \
        "$systemdsystemunitdir/systemd-poweroff.service" "$systemdsystemunitdir/systemd-halt.service" \
        "$systemdsystemunitdir/poweroff.target" "$systemdsystemunitdir/halt.target"
    for unit in emergency rescue; do
        # Whatever isolates them, the capture goes on beside them, and nobody is asked for a password.
        inst_simple "$systemdsystemunitdir/$unit.target"
        mkdir -p "$initdir$systemdsystemunitdir/$unit.target.wants"
        ln -sfn ../kdump-capture.service "$initdir$systemdsystemunitdir/$unit.target.wants/kdump-capture.service"
        ln -sfn /dev/null "$initdir$systemdsystemconfdir/$unit.service"
    done
    # What looks for a root, a password or the state of an earlier boot has no business here.
    for unit in systemd-ask-password-console.path systemd-ask-password-plymouth.path systemd-random-seed.service \
        systemd-vconsole-setup.service systemd-update-utmp.service systemd-remount-fs.service \
        systemd-journal-flush.service systemd-journald-audit.socket; do
        ln -sfn /dev/null "$initdir$systemdsystemconfdir/$unit"
    done

    # /init has loaded the drivers, and most times mounted the target: then udev has nothing to do, and its coldplug of
    # all devices would take a third of the boot.
    for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket \
        systemd-udevd-kernel.socket; do
        mkdir -p "$initdir$systemdsystemconfdir/$unit.d"
        printf '[Unit]\nConditionPathIsMountPoint=!/kdump/target\n' \
            > "$initdir$systemdsystemconfdir/$unit.d/kdump-service.conf"
    done

    # The journal may be a little late, the dump must not.
    mkdir -p "$initdir$systemdsystemconfdir/systemd-journald.service.d"
    printf '[Service]\nNice=10\n' > "$initdir$systemdsystemconfdir/systemd-journald.service.d/kdump-service.conf"

    mkdir -p "$initdir/etc/systemd/journald.conf.d" "$initdir/kdump/target" "$initdir/kdump/state"
    # Small: it lies in the memory that is reserved for the capture.
    cat > "$initdir/etc/systemd/journald.conf.d/99-kdump-service.conf" << 'END'
[Journal]
Storage=volatile
RuntimeMaxUse=4M
RuntimeMaxFileSize=1M
RateLimitIntervalSec=0
END
    # Production's sysctls (panic_on_oops, huge pages) are production's. The database of hardware names is 10 MB that
    # no rule here asks for.
    rm -rf "$initdir"/etc/sysctl.conf "$initdir"/{etc,usr/lib}/sysctl.d "$initdir"/{etc,usr/lib}/udev/hwdb.bin \
        "$initdir"/{etc,usr/lib}/modules-load.d "$initdir"/usr/lib/systemd/system-generators
}
