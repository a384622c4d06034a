//! Servers that answer late, wrongly or not at all.

use super::*;

#[test]
fn nbdkit_with_any_number_of_replies_out_of_order() {
    let place = Place::new();
    let options = place.options();
    // The pattern plugin's bytes are their own offsets.
    let arguments = ["--filter=delay", "pattern", "100M", "rdelay=5ms"];
    let export = place.nbdkit(&arguments, &options).unwrap();
    let tally = Arc::new(Tally::default());
    for i in 0..500 {
        export.submit(
            i as u64 * 8192 * 8,
            BytesMut::zeroed(4096 + 8 * i),
            tally.slot(i),
        );
    }
    for (i, answer) in tally.wait(500).into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(answer.len(), 4096 + 8 * i);
        for (word, bytes) in answer.chunks_exact(8).enumerate() {
            let truth = (i * 8192 * 8 + word * 8) as u64;
            assert_eq!(u64::from_be_bytes(bytes.try_into().unwrap()), truth);
        }
    }
}

#[test]
fn an_error_of_the_server_is_that_requests_only() {
    let place = Place::new();
    let arguments = [
        "--filter=error",
        "pattern",
        "100M",
        "error-pread=EIO",
        "error-pread-rate=30%",
    ];
    let export = place.nbdkit(&arguments, &place.options()).unwrap();
    let pid = export.pid();
    let tally = Arc::new(Tally::default());
    for i in 0..400 {
        export.submit(i as u64 * 65536, BytesMut::zeroed(1024), tally.slot(i));
    }
    let (mut good, mut bad) = (0, 0);
    for (i, answer) in tally.wait(400).into_iter().enumerate() {
        match answer {
            Ok(bytes) => {
                good += 1;
                assert_eq!(bytes[..8], (i as u64 * 65536).to_be_bytes());
            }
            Err(Error::Io { source, .. }) => {
                bad += 1;
                assert!(source.to_string().contains("os error 5"), "{source}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(good > 100 && bad > 40, "{good} good, {bad} bad");
    assert_eq!((export.restarts(), export.pid()), (0, pid));
}

#[test]
fn a_server_without_structured_replies_and_one_that_shuts_down() {
    let place = Place::new();
    let arguments = ["--no-sr", "--filter=delay", "pattern", "100M", "rdelay=2ms"];
    let export = place.nbdkit(&arguments, &place.options()).unwrap();
    let tally = Arc::new(Tally::default());
    (0..200).for_each(|i| export.submit(i as u64 * 800, BytesMut::zeroed(16), tally.slot(i)));
    for (i, answer) in tally.wait(200).into_iter().enumerate() {
        assert_eq!(answer.unwrap()[..8], (i as u64 * 800).to_be_bytes());
    }
    let all = export.block_status(0, 4096).unwrap();
    assert_eq!(
        all,
        [Allocation {
            len: 4096,
            hole: false
        }]
    );

    // SIGTERM lets nbdkit answer what is under way with ESHUTDOWN, or hang up.
    let slow = place.nbdkit(
        &["--filter=delay", "pattern", "100M", "rdelay=100ms"],
        &place.options(),
    );
    let slow = slow.unwrap();
    (0..64).for_each(|i| slow.submit(i as u64 * 800, BytesMut::zeroed(16), tally.slot(i)));
    std::thread::sleep(Duration::from_millis(20));
    signal(slow.pid(), nix::sys::signal::SIGTERM);
    for (i, answer) in tally.wait(64).into_iter().enumerate() {
        assert_eq!(answer.unwrap()[..8], (i as u64 * 800).to_be_bytes());
    }
    assert_eq!(slow.restarts(), 1);
}

#[test]
fn delays_beyond_the_time_out_and_late_replies() {
    let place = Place::new();
    for more in [&[][..], &["--no-sr"]] {
        let mut options = place.options();
        options.request_timeout = Duration::from_millis(400);
        let arguments = [more, &["--filter=delay", "pattern", "100M", "rdelay=600ms"]].concat();
        let export = place.nbdkit(&arguments, &options).unwrap();
        let started = Instant::now();
        let tally = Arc::new(Tally::default());
        (0..20).for_each(|i| export.submit(i as u64 * 800, BytesMut::zeroed(9000), tally.slot(i)));
        assert!(
            tally
                .wait(20)
                .iter()
                .all(|a| matches!(a, Err(Error::TimedOut { .. })))
        );
        assert!(started.elapsed() < Duration::from_millis(590));
        eventually("late replies are thrown away", || export.requests() == 20);
        assert_eq!((export.restarts(), export.bytes_read()), (0, 0));
    }
}
