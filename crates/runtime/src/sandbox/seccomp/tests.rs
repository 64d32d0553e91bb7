use super::*;

/// What the kernel would answer.
fn run(program: &[sock_filter], architecture: u32, number: i64, arguments: [u64; 3]) -> u32 {
    let mut data = Vec::new();
    data.extend(u32::try_from(number & 0xffff_ffff).unwrap().to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    for argument in arguments {
        data.extend(argument.to_le_bytes());
    }
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let instruction = &program[at];
        at += 1;
        let mut jump = |condition: bool| {
            at += usize::from(if condition {
                instruction.jt
            } else {
                instruction.jf
            })
        };
        match instruction.code {
            LOAD => {
                let offset = instruction.k as usize;
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            EQUAL => jump(accumulator == instruction.k),
            AT_LEAST => jump(accumulator >= instruction.k),
            ANY_BIT => jump(accumulator & instruction.k != 0),
            0x05 => at += instruction.k as usize,
            RETURN => return instruction.k,
            other => panic!("instruction {other:#x} is not used"),
        }
    }
}

#[test]
fn every_number_gets_the_verdict_of_the_list() {
    let program = compile();
    let allowed = allowed();
    for number in 0..=i64::from(NEWEST_KNOWN) + 100 {
        let special = [
            libc::SYS_clone3,
            libc::SYS_io_setup,
            libc::SYS_clone,
            libc::SYS_unshare,
            libc::SYS_personality,
            libc::SYS_socket,
        ]
        .contains(&number);
        if special {
            continue;
        }
        let expected = if allowed.contains(&number) {
            ALLOW
        } else if number > i64::from(NEWEST_KNOWN) {
            ERRNO | ENOSYS
        } else {
            ERRNO | EPERM
        };
        assert_eq!(
            run(&program, OUR_ARCHITECTURE, number, [0; 3]),
            expected,
            "call {number}"
        );
    }
    assert_eq!(
        run(&program, OUR_ARCHITECTURE, 0x4000_0000, [0; 3]),
        ERRNO | ENOSYS,
        "x32"
    );
    assert_eq!(run(&program, 0x4000_0003, 1, [0; 3]), KILL_PROCESS, "i386");
}

#[test]
fn the_dangerous_are_not_on_the_list() {
    let program = compile();
    let refused = calls![SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_setns SYS_bpf SYS_perf_event_open SYS_keyctl
        SYS_add_key SYS_request_key SYS_userfaultfd SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load
        SYS_reboot SYS_swapon SYS_open_by_handle_at SYS_quotactl SYS_acct SYS_settimeofday SYS_clock_settime
        SYS_syslog SYS_move_mount SYS_open_tree SYS_fsopen SYS_fsmount SYS_fsconfig SYS_mount_setattr
        SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_fanotify_init SYS_sethostname
        SYS_setdomainname SYS_vhangup SYS_mbind SYS_set_mempolicy SYS_migrate_pages SYS_move_pages];
    for number in refused {
        assert_eq!(
            run(&program, OUR_ARCHITECTURE, number, [0; 3]),
            ERRNO | EPERM,
            "call {number}"
        );
    }
    for number in [libc::SYS_clone3, libc::SYS_io_setup] {
        assert_eq!(
            run(&program, OUR_ARCHITECTURE, number, [0; 3]),
            ERRNO | ENOSYS,
            "call {number}"
        );
    }
}

#[test]
fn arguments_decide_where_they_must() {
    let program = compile();
    let answer = |number, arguments| run(&program, OUR_ARCHITECTURE, number, arguments);
    assert_eq!(
        answer(
            libc::SYS_clone,
            [0x0123_8f00 & !u64::from(NAMESPACE_FLAGS), 0, 0]
        ),
        ALLOW,
        "a thread"
    );
    for flag in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWCGROUP,
    ] {
        let flag = u64::from(flag.unsigned_abs());
        assert_eq!(answer(libc::SYS_clone, [flag, 0, 0]), ERRNO | EPERM);
        assert_eq!(answer(libc::SYS_unshare, [flag, 0, 0]), ERRNO | EPERM);
    }
    assert_eq!(
        answer(libc::SYS_unshare, [0x80, 0, 0]),
        ERRNO | EPERM,
        "time namespace"
    );
    assert_eq!(
        answer(libc::SYS_unshare, [0x400, 0, 0]),
        ALLOW,
        "descriptor table"
    );
    let socket = |family: i32, protocol: u64| {
        answer(
            libc::SYS_socket,
            [u64::from(family.unsigned_abs()), 1, protocol],
        )
    };
    assert_eq!(socket(libc::AF_INET, 6), ALLOW);
    assert_eq!(socket(libc::AF_INET6, 0), ALLOW);
    assert_eq!(socket(libc::AF_UNIX, 0), ALLOW);
    assert_eq!(socket(libc::AF_NETLINK, 0), ALLOW);
    assert_eq!(socket(libc::AF_NETLINK, 15), ALLOW);
    assert_eq!(
        socket(libc::AF_NETLINK, 12),
        ERRNO | EPROTONOSUPPORT,
        "netfilter"
    );
    for family in [
        libc::AF_VSOCK,
        libc::AF_PACKET,
        libc::AF_ALG,
        libc::AF_TIPC,
        libc::AF_XDP,
    ] {
        assert_eq!(socket(family, 0), ERRNO | EAFNOSUPPORT);
    }
    assert_eq!(answer(libc::SYS_personality, [0xffff_ffff, 0, 0]), ALLOW);
    assert_eq!(
        answer(libc::SYS_personality, [0x0040_0000, 0, 0]),
        ERRNO | EPERM,
        "READ_IMPLIES_EXEC"
    );
}

#[test]
fn the_way_through_the_filter_is_short() {
    let program = compile();
    assert!(program.len() < 600, "{} instructions", program.len());
}
