//! Runners that are away for a while: what that costs, and how soon they are back.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::{Value, json};

use super::{Fixture, runners};
use crate::support::{
    Finish, at,
    client::{Connection, Response},
    eventually,
    gateway::{Gateway, Setup},
    runner::{conf, program, started_by},
    upstream::Upstream,
};

fn pre(name: &str, value: impl Into<Value>) -> Value {
    json!({"ext-plugin-pre-req": conf(name, value)})
}

fn degradable(mut plugins: Value) -> Value {
    plugins["ext-plugin-pre-req"]["allow_degradation"] = true.into();
    plugins
}

/// A gateway that starts its runner, and two routes to it: `/must` fails without the runner, `/may` goes on.
fn managed(runner: Value, change: impl FnOnce(Setup) -> Setup) -> (Gateway, Upstream) {
    let upstream = Upstream::with(|_, wire| wire.answer(200, &[], b"upstream"));
    let through = pre("rewrite", json!({"resp_headers": [["x-through", "yes"]]}));
    let route = |id: &str, plugins: Value| json!({"id": id, "uri": format!("/{id}"), "plugins": plugins, "upstream": upstream.resource()});
    let routes = json!({"routes": [route("must", through.clone()), route("may", degradable(through))]});
    let setup = Setup::file(routes).set("ext-plugin.runners", json!({"stub": runner}));
    (change(setup).start(), upstream)
}

fn command() -> Value {
    json!([program().display().to_string()])
}

fn signal(pid: i32, signal: Signal) {
    // It may have ended by itself.
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}

/// Stops all of a process. The signal alone does so when one of its threads gets round to it; on a busy machine the
/// others may answer a call before.
#[track_caller]
fn freeze(pid: i32) {
    signal(pid, Signal::SIGSTOP);
    let state = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    eventually("none of its threads runs", || match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks.flatten().filter_map(state).all(|state| matches!(state, 'T' | 'Z')),
        // It may have ended by itself.
        Err(_) => true,
    });
}

/// How many calls were not made.
fn spared(gateway: &Gateway) -> usize {
    gateway.stderr().matches("its circuit breaker is open").count()
}

/// A 503 of the gateway, whole and as every other.
#[track_caller]
fn clean(answer: Response) {
    let answer = answer.expect(503).expect_in_body("503 Service Temporarily Unavailable");
    assert_eq!(answer.all("content-type"), ["text/html; charset=utf-8"]);
}

/// Requests without end while something happens to the runner.
struct Load {
    answered: AtomicUsize,
    refused: AtomicUsize,
    /// Answers that did not pass through the runner.
    without: AtomicUsize,
}

/// Asks for `target` with so many clients for as long as `happens` takes. Whatever is answered is 200 or a clean 503.
fn under_load(gateway: &Gateway, target: &str, clients: usize, happens: impl FnOnce()) -> Load {
    let load =
        Load { answered: AtomicUsize::new(0), refused: AtomicUsize::new(0), without: AtomicUsize::new(0) };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = (0..clients).map(|_| {
            scope.spawn(|| {
                let request = gateway.request("GET", target);
                let mut client = Connection::open(gateway.ports.http);
                while !over.load(Relaxed) {
                    let answer = client.exchange(&request);
                    if answer.status == 503 {
                        clean(answer);
                        load.refused.fetch_add(1, Relaxed);
                    } else {
                        let through = answer.header("x-through").is_some();
                        answer.expect(200).expect_body("upstream");
                        load.without.fetch_add(usize::from(!through), Relaxed);
                    }
                    load.answered.fetch_add(1, Relaxed);
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        let finish = Finish(&over);
        happens();
        drop(finish);
        clients.into_iter().for_each(|client| client.join().expect("all answers are right"));
    });
    load
}

#[test]
fn a_runner_that_hangs_costs_few_calls() {
    let limit = Duration::from_millis(300);
    let fixture = Fixture::with(pre("nothing", ""), |setup| setup.set("ext-plugin.timeout.call", "300ms"));
    eventually("it answers", || fixture.get("/").status == 200);
    freeze(fixture.runner.pid());
    let begun = Instant::now();
    // A call that a busy gateway had no time to make is not the runner's fault, and counts for nothing.
    eventually("its breaker opens", || {
        clean(fixture.get("/"));
        fixture.gateway.stderr().contains("circuit breaker opens")
    });
    assert!(begun.elapsed() >= limit * 5, "five at least were waited for");
    let before = spared(&fixture.gateway);
    for _ in 0..20 {
        clean(fixture.get("/"));
    }
    assert_eq!(spared(&fixture.gateway) - before, 20, "no call is made");
    signal(fixture.runner.pid(), Signal::SIGCONT);
    eventually("the runner is asked again", || fixture.get("/").status == 200);
}

#[test]
fn a_runner_that_answers_only_half_of_what_it_should_is_tried_again() {
    // It knows configurations, but its plugin hangs until the calls are over.
    let plugins =
        json!({"ext-plugin-pre-req": {"conf": [{"name": "fault", "value": "hang"}], "timeout_ms": 100}});
    let fixture = Fixture::new(plugins);
    for _ in 0..5 {
        clean(fixture.get("/"));
    }
    eventually("calls are no longer made", || {
        clean(fixture.get("/"));
        spared(&fixture.gateway) > 0
    });
    let route = json!({"id": "1", "uri": "/*", "plugins": pre("nothing", ""), "upstream": fixture.upstream.resource()});
    fixture.gateway.rewrite(json!({"routes": [route]}));
    eventually("a call that goes well closes the breaker", || fixture.get("/").status == 200);
    fixture.get("/").expect(200);
}

/// A plugin that hangs and comes back in a process that answers all the while; gives how long it took each time until
/// it was used again. `fault` is what becomes of calls while it hangs, `settings` says how long they may take.
#[track_caller]
fn back_after_hanging(fault: &str, settings: impl FnOnce(Setup) -> Setup) -> Vec<Duration> {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("hangs");
    let plugins = pre("fault", format!("{fault}:{}", file.display()));
    let fixture =
        Fixture::with(plugins, |setup| settings(setup.set("ext-plugin.circuit_breaker.failures", 1)));
    let round = || {
        eventually("it answers", || fixture.get("/").status == 200);
        let before = spared(&fixture.gateway);
        std::fs::write(&file, "").unwrap();
        eventually("the breaker opens", || {
            clean(fixture.get("/"));
            spared(&fixture.gateway) > before
        });
        // Those that find out whether it still hangs wait for half a second, and there are no two at once.
        let (begun, mut asked) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(2) || asked <= 10 {
            clean(fixture.get("/"));
            asked += 1;
        }
        std::fs::remove_file(&file).unwrap();
        let back = Instant::now();
        eventually("it is used again", || fixture.get("/").status == 200);
        let took = back.elapsed();
        eventually("it stays in use", || (0..5).all(|_| fixture.get("/").status == 200));
        fixture.upstream.forget();
        took
    };
    let mut times: Vec<_> = (0..4).map(|_| round()).collect();
    while !soon(&times) && times.len() < ROUNDS {
        times.push(round());
    }
    println!("{fault}: used again after {times:?}");
    times
}

#[test]
fn a_plugin_that_no_longer_hangs_is_used_again_within_a_second() {
    let short = |setup: Setup| setup.set("ext-plugin.timeout.call", "1s");
    // Calls that were given up and are answered in their time close it, too.
    for fault in ["hang_while", "wait_while"] {
        let times = back_after_hanging(fault, short);
        assert!(soon(&times), "{times:?}");
    }
}

/// How often a busy machine may spoil what should take less than a second.
const ROUNDS: usize = 20;

/// Whether what is back was used within a second. On a busy machine it may take longer, but not each time.
fn soon(times: &[Duration]) -> bool {
    times.iter().any(|time| *time < Duration::from_secs(1))
}

#[test]
fn a_plugin_that_is_slower_than_a_trial_is_used_again() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("hangs");
    let fixture = Fixture::with(json!({}), |setup| {
        setup.set("ext-plugin.circuit_breaker.failures", 1).set("ext-plugin.timeout.call", "20s")
    });
    let slow = json!([{"name": "fault", "value": "sleep:1500"}]);
    let hangs = json!([{"name": "fault", "value": format!("hang_while:{}", file.display())}]);
    let route = |id: &str, conf: Value, limit: Value| {
        let mut pre = json!({"conf": conf});
        pre["timeout_ms"] = limit;
        json!({"id": id, "uri": format!("/{id}"), "plugins": {"ext-plugin-pre-req": pre}, "upstream": fixture.upstream.resource()})
    };
    let routes = [route("slow", slow, json!(20_000)), route("hangs", hangs, json!(100))];
    fixture.gateway.rewrite(json!({"routes": routes}));
    eventually("the routes are there", || fixture.get("/elsewhere").status == 404);
    std::fs::write(&file, "").unwrap();
    clean(fixture.get("/hangs"));
    eventually("a reply that came too late for its client lets others through", || {
        fixture.get("/slow").status == 200
    });
    fixture.get("/slow").expect(200);
}

#[test]
fn failures_of_plugins_open_nothing() {
    for fault in ["error:0", "error:1", "close", "garbage"] {
        let fixture = Fixture::new(json!({}));
        let route = |id: &str, plugins: Value| json!({"id": id, "uri": format!("/{id}"), "plugins": plugins, "upstream": fixture.upstream.resource()});
        let routes =
            json!({"routes": [route("bad", pre("fault", fault)), route("good", pre("nothing", ""))]});
        fixture.gateway.rewrite(routes);
        eventually("the routes are there", || fixture.get("/bad").status == 503);
        for _ in 0..10 {
            clean(fixture.get("/bad"));
        }
        // One that closes connections is asked whether it is there, which it is.
        eventually("other plugins are called", || fixture.get("/good").status == 200);
    }
}

#[test]
fn the_breaker_can_be_switched_off() {
    let off = |setup: Setup| {
        setup.set("ext-plugin.circuit_breaker.failures", 0).set("ext-plugin.timeout.call", "50ms")
    };
    let fixture = Fixture::with(pre("fault", "hang"), off);
    for _ in 0..12 {
        clean(fixture.get("/"));
    }
    assert!(!fixture.gateway.stderr().contains("circuit breaker"));
}

#[test]
fn a_runner_that_starts_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let go = home.path().join("go");
    let held = format!("until [ -e {} ]; do sleep 0.1; done; exec {}", go.display(), program().display());
    let (gateway, _upstream) = managed(json!({"cmd": ["sh", "-c", held]}), |setup| setup);
    thread::scope(|scope| {
        let must = scope.spawn(|| gateway.get("/must"));
        // Does not wait for it.
        gateway.get("/may").expect(200).expect_header("x-through", "");
        assert!(!must.is_finished(), "it waits");
        std::fs::write(&go, "").unwrap();
        must.join().expect("it is answered").expect(200).expect_header("x-through", "yes");
    });
    gateway.get("/may").expect(200).expect_header("x-through", "yes");
}

#[test]
fn nobody_waits_for_a_runner_that_does_not_start() {
    let (gateway, _upstream) = managed(json!({"cmd": ["false"]}), |setup| setup);
    eventually("it has failed a few times", || {
        gateway.stderr().matches("the runner does not start").count() > 2
    });
    let begun = Instant::now();
    clean(gateway.get("/must"));
    gateway.get("/may").expect(200);
    assert!(begun.elapsed() < Duration::from_secs(25), "not as long as for one that starts");
}

#[test]
fn a_process_that_no_longer_listens_is_replaced() {
    let socket = |gateway: &Gateway| {
        let all = std::fs::read_dir(gateway.path("data")).expect("a directory").flatten();
        all.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|ext| ext == "sock"))
    };
    let (gateway, _upstream) = managed(json!({"cmd": command(), "connections": 1}), |setup| setup);
    gateway.get("/must").expect(200);
    let old = started_by(gateway.child());
    std::fs::remove_file(socket(&gateway).expect("a socket")).unwrap();
    freeze(old[0]);
    // The connection that is kept is no longer good; another one cannot be made.
    signal(old[0], Signal::SIGKILL);
    gateway.get("/must").expect(200).expect_header("x-through", "yes");
    assert_ne!(started_by(gateway.child()), old);
}

#[test]
fn a_process_that_hangs_is_replaced() {
    let (gateway, _upstream) =
        managed(json!({"cmd": command()}), |setup| setup.set("ext-plugin.timeout.call", "300ms"));
    eventually("it is ready", || gateway.get("/must").status == 200);
    let old = started_by(gateway.child());
    freeze(old[0]);
    eventually("another one answers", || {
        gateway.get("/may").expect(200);
        gateway.get("/must").status == 200
    });
    assert_ne!(started_by(gateway.child()), old);
}

/// A change of the runner's files under load; none of it may be seen.
#[track_caller]
fn reloaded_unseen(fixed_socket: bool) {
    let watched = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut runner = json!({"cmd": command(), "watch": [watched.path()]});
    if fixed_socket {
        runner["socket"] = home.path().join("r.sock").display().to_string().into();
    }
    let (gateway, _upstream) = managed(runner, |setup| setup);
    gateway.get("/must").expect(200);
    for target in ["/must", "/may"] {
        let load = under_load(&gateway, target, 4, || {
            for round in 0..2 {
                let old = started_by(gateway.child());
                eventually("another process is there", || {
                    let name = format!("{}-{round}-{:?}", &target[1..], Instant::now());
                    std::fs::write(watched.path().join(name), "x").unwrap();
                    thread::sleep(Duration::from_millis(100));
                    let now = started_by(gateway.child());
                    !now.is_empty() && now.iter().all(|pid| !old.contains(pid))
                });
                gateway.get("/must").expect(200);
            }
        });
        assert_eq!(load.refused.into_inner(), 0, "{target}");
        assert!(load.answered.into_inner() > 10);
    }
}

#[test]
fn a_reload_is_not_seen() {
    reloaded_unseen(false);
}

#[test]
fn a_reload_on_a_fixed_socket_is_not_seen() {
    reloaded_unseen(true);
}

/// How long processes are killed: a minute with `PORTCULLIS_LONG=1`.
fn duration() -> Duration {
    let long = std::env::var_os("PORTCULLIS_LONG").is_some_and(|value| value == "1");
    Duration::from_secs(if long { 60 } else { 5 })
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The processes of the gateway's runner that are ready.
#[track_caller]
fn ready(gateway: &Gateway) -> Vec<i32> {
    let shown = runners(gateway);
    let processes = at(&shown, "/0/processes").as_array().expect("a list").iter();
    let ready = processes.filter(|process| process["state"] == "ready");
    ready.map(|process| i32::try_from(process["pid"].as_i64().expect("a number")).unwrap()).collect()
}

/// Kills processes of the gateway's runner at random, a few at least; gives how many. Those that are not ready yet are
/// spared: a runner that does not start a few times is not waited for.
fn rampage(gateway: &Gateway) -> usize {
    let (begun, mut dice, mut killed) = (Instant::now(), Dice(7), 0);
    while begun.elapsed() < duration() || killed <= 5 {
        let mut processes = Vec::new();
        eventually("a process is ready", || {
            processes = ready(gateway);
            !processes.is_empty()
        });
        signal(processes[dice.below(processes.len() as u64) as usize], Signal::SIGKILL);
        killed += 1;
        thread::sleep(Duration::from_millis(50 + dice.below(400)));
    }
    killed
}

#[test]
fn killed_at_random_nothing_fails_that_may_go_without() {
    let (gateway, upstream) = managed(json!({"cmd": command(), "processes": 3}), |setup| setup);
    gateway.get("/must").expect(200);
    let mut killed = 0;
    let load = under_load(&gateway, "/may", 8, || killed = rampage(&gateway));
    let (answered, refused, without) =
        (load.answered.into_inner(), load.refused.into_inner(), load.without.into_inner());
    println!("{killed} killed, {answered} requests, {without} without the runner, {refused} refused");
    assert_eq!(refused, 0, "of {answered}, while {killed} processes were killed");
    assert!(without < answered, "the runner was used between its deaths");
    upstream.forget();
}

#[test]
fn killed_at_random_there_are_clean_refusals_at_most() {
    let (gateway, upstream) = managed(json!({"cmd": command(), "processes": 3}), |setup| setup);
    gateway.get("/must").expect(200);
    let mut killed = 0;
    let load = under_load(&gateway, "/must", 8, || killed = rampage(&gateway));
    let (answered, refused) = (load.answered.into_inner(), load.refused.into_inner());
    println!("{killed} killed, {answered} requests, {refused} refused");
    assert_eq!(load.without.into_inner(), 0, "no request goes past the runner");
    // Those that a process had read when it was killed.
    assert!(refused <= killed * 8, "{refused} of {answered}, while {killed} processes were killed");
    gateway.get("/must").expect(200);
    upstream.forget();
}

#[test]
fn a_runner_that_comes_back_is_used_again() {
    let mut fixture = Fixture::new(pre("echo", ""));
    let (begun, mut dice, mut times) = (Instant::now(), Dice(11), Vec::new());
    while begun.elapsed() < duration() || !soon(&times) && times.len() < ROUNDS {
        fixture.get("/").expect(200);
        fixture.runner.kill();
        for _ in 0..5 + dice.below(20) {
            clean(fixture.get("/"));
        }
        let back = Instant::now();
        fixture.runner.start_again();
        let mut answer = fixture.get("/");
        eventually("it is used again", || {
            answer = fixture.get("/");
            answer.status == 200
        });
        let took = back.elapsed();
        times.push(took);
        // The question whether it is back, which runner it is, and the configuration. To be there is enough, but the
        // gateway, which asks four times a second, may give up the first answers of a busy one.
        let asked = at(&answer.json(), "/confs").as_u64().expect("a number");
        assert!(u128::from(asked) <= 3 + took.as_millis() / 250, "{asked} questions in {took:?}");
        fixture.upstream.forget();
    }
    let (shortest, longest) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    println!("{} times away, used again after {shortest:?} to {longest:?}", times.len());
    assert!(soon(&times), "{times:?}");
}

#[test]
fn a_runner_that_hangs_does_not_hold_every_client_until_its_time_is_over() {
    let fixture = Fixture::with(pre("echo", ""), |setup| {
        setup.set("ext-plugin.timeout.call", "10m").set("ext-plugin.circuit_breaker.patience", "100ms")
    });
    fixture.get("/").expect(200);
    freeze(fixture.runner.pid());
    thread::scope(|scope| {
        let first = scope.spawn(|| fixture.get("/").expect(200));
        let opened = "it answers nothing while a call is under way";
        eventually("the breaker opens", || fixture.gateway.stderr().contains(opened));
        // Ten minutes are not over.
        clean(fixture.get("/"));
        signal(fixture.runner.pid(), Signal::SIGCONT);
        first.join().expect("the call that was under way is answered");
    });
    eventually("calls are made again", || fixture.get("/").status == 200);
}

#[test]
fn a_plugin_that_is_slow_opens_nothing() {
    // A runner that gets no time of a busy machine for two seconds looks like one that hangs, but not again and again.
    eventually("it is left in use", || {
        let fixture = Fixture::with(pre("fault", "sleep:1500"), |setup| {
            setup.set("ext-plugin.circuit_breaker.patience", "10ms")
        });
        let served = (0..2).all(|_| fixture.get("/").status == 200);
        served && !fixture.gateway.stderr().contains("circuit breaker")
    });
}

#[test]
fn a_process_that_hangs_is_replaced_long_before_its_calls_are_out_of_time() {
    let (gateway, _upstream) = managed(json!({"cmd": command()}), |setup| {
        setup.set("ext-plugin.timeout.call", "10m").set("ext-plugin.circuit_breaker.patience", "100ms")
    });
    eventually("it is ready", || gateway.get("/must").status == 200);
    freeze(started_by(gateway.child())[0]);
    // A call over a connection that was used before is made again at the new process; over a fresh one it is refused.
    let answer = gateway.get("/must");
    if answer.status != 200 {
        clean(answer);
    }
    // Ten minutes are not over.
    gateway.get("/must").expect(200).expect_header("x-through", "yes");
}
