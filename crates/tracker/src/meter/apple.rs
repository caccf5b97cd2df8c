//! Apple silicon: what macOS itself counts of the chip's parts (IOReport's energy model), read through
//! [macmon](https://github.com/vladkens/macmon) without privileges.
//!
//! macmon gives the mean power of an interval and takes as long as the interval for it. A thread of its own therefore
//! asks for one interval after the other and sends them here; the time since the last of them is bridged with its
//! power until the next one says what it was. The arithmetic is the same on every system and tested so; only
//! [`AppleSilicon::open`] needs a Mac.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::{Component, Domain, EnergyMeter, Gap, Method, Reading};
use crate::range::Range;

/// Length of an interval.
#[cfg(target_os = "macos")]
const INTERVAL: Duration = Duration::from_secs(1);

/// How far the figures may be off, our assumption: Apple publishes no accuracy of its model, and says that values of
/// different devices are not to be compared (manual page of powermetrics).
const ACCURACY: f64 = 0.10;

/// A time without an interval that is bridged with the power of the last one.
const BRIDGED: f64 = 10.0;

/// Parts of a chip: CPU, GPU with the neural engine, memory.
const PARTS: usize = 3;

/// Mean power of the parts over some seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) seconds: f64,
    /// In the order of [`PARTS`].
    pub(crate) watts: [f64; PARTS],
}

/// A chip, as a meter.
pub struct AppleSilicon {
    domains: Vec<Domain>,
    /// Which part each domain is.
    parts: Vec<usize>,
    chip: String,
    intervals: Receiver<Result<Interval, String>>,
    begun: Duration,
    /// Joules and seconds of all intervals.
    joules: [f64; PARTS],
    seconds: f64,
    /// The last interval's power.
    watts: [f64; PARTS],
    /// What was said last; a bridge that was too high must not make it fall.
    told: [f64; PARTS],
    /// Seconds that have been reported as lost.
    lost: f64,
}

impl AppleSilicon {
    /// A meter of this machine's chip; nothing on other systems, and in a virtual machine, which shows no counters.
    #[cfg(not(target_os = "macos"))]
    pub fn open(_with_gpu: bool, _now: Duration) -> Option<Self> {
        None
    }

    /// A meter of this machine's chip; nothing on other systems, and in a virtual machine, which shows no counters.
    #[cfg(target_os = "macos")]
    pub fn open(with_gpu: bool, now: Duration) -> Option<Self> {
        use std::sync::mpsc;
        use std::time::Instant;

        let (send, intervals) = mpsc::channel();
        let (introduce, introduced) = mpsc::channel();
        let sampling = move || {
            // Its handles belong to the thread that made them.
            let Ok(mut sampler) = macmon::Sampler::new() else {
                return;
            };
            let soc = sampler.get_soc_info();
            if soc.vm || introduce.send(soc.chip_name.clone()).is_err() {
                return;
            }
            loop {
                let begun = Instant::now();
                let interval = sampler.get_metrics(INTERVAL.as_millis() as u32);
                let interval = interval.map_err(|error| error.to_string()).map(|metrics| {
                    let of_gpu = metrics.gpu_power + metrics.ane_power;
                    let watts = [metrics.cpu_power, of_gpu, metrics.ram_power];
                    Interval {
                        seconds: begun.elapsed().as_secs_f64(),
                        watts: watts.map(f64::from),
                    }
                });
                let failed = interval.is_err();
                if send.send(interval).is_err() {
                    return;
                }
                if failed {
                    std::thread::sleep(INTERVAL);
                }
            }
        };
        let thread = std::thread::Builder::new().name("macmon".to_owned());
        thread.spawn(sampling).ok()?;
        let chip = introduced.recv().ok()?;
        Some(Self::new(chip, with_gpu, intervals, now))
    }

    /// A meter of a chip whose intervals come through a channel.
    #[cfg_attr(
        not(any(test, target_os = "macos")),
        expect(dead_code, reason = "only Macs open one")
    )]
    fn new(
        chip: String,
        with_gpu: bool,
        intervals: Receiver<Result<Interval, String>>,
        now: Duration,
    ) -> Self {
        let all = [
            ("apple:cpu", format!("CPU ({chip})"), Component::Cpu),
            (
                "apple:gpu",
                format!("GPU and neural engine ({chip})"),
                Component::Gpu,
            ),
            ("apple:ram", "memory".to_owned(), Component::Ram),
        ];
        let (parts, domains) = all
            .into_iter()
            .enumerate()
            .filter(|(_, (.., component))| with_gpu || *component != Component::Gpu)
            .map(|(part, (id, label, component))| {
                let domain = Domain {
                    id: id.to_owned(),
                    label,
                    component,
                    method: Method::Measured,
                    source: "IOReport's power by macmon, the chip's own energy model, integrated"
                        .to_owned(),
                };
                (part, domain)
            })
            .unzip();
        Self {
            domains,
            parts,
            chip,
            intervals,
            begun: now,
            joules: [0.0; PARTS],
            seconds: 0.0,
            watts: [0.0; PARTS],
            told: [0.0; PARTS],
            lost: 0.0,
        }
    }

    /// The chip's name.
    pub fn chip(&self) -> &str {
        &self.chip
    }
}

impl EnergyMeter for AppleSilicon {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, now: Duration) -> Result<Reading, Gap> {
        let mut reason = None;
        for interval in self.intervals.try_iter() {
            match interval {
                Ok(interval) => {
                    for (joules, watts) in self.joules.iter_mut().zip(interval.watts) {
                        *joules += watts * interval.seconds;
                    }
                    self.seconds += interval.seconds;
                    self.watts = interval.watts;
                    reason = None;
                }
                Err(error) => reason = Some(error),
            }
        }
        let since = (now.saturating_sub(self.begun)).as_secs_f64() - self.seconds - self.lost;
        let bridged = since.clamp(0.0, BRIDGED);
        for ((told, joules), watts) in self.told.iter_mut().zip(self.joules).zip(self.watts) {
            *told = told.max(joules + watts * bridged);
        }
        let too_long = since - BRIDGED;
        let mut gaps = Vec::new();
        if too_long > 0.0 {
            // Bridged once, and counted as an interval would be.
            for (joules, watts) in self.joules.iter_mut().zip(self.watts) {
                *joules += watts * BRIDGED;
            }
            self.seconds += BRIDGED;
            self.lost += too_long;
            let reason = reason.unwrap_or_else(|| "macmon gave nothing".to_owned());
            gaps.extend((0..self.domains.len()).map(|domain| Gap {
                domain: Some(domain),
                lost_seconds: too_long,
                reason: reason.clone(),
            }));
        }
        let range = |part: &usize| {
            let joules = self.told[*part];
            Range::new(joules * (1.0 - ACCURACY), joules, joules * (1.0 + ACCURACY))
        };
        Ok(Reading {
            joules: self.parts.iter().map(range).collect(),
            gaps,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Sender};

    use super::*;

    fn meter(with_gpu: bool) -> (AppleSilicon, Sender<Result<Interval, String>>) {
        let (send, receive) = mpsc::channel();
        let meter = AppleSilicon::new("Apple M4".to_owned(), with_gpu, receive, at(100.0));
        (meter, send)
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn send(sender: &Sender<Result<Interval, String>>, seconds: f64, watts: [f64; PARTS]) {
        sender.send(Ok(Interval { seconds, watts })).unwrap();
    }

    fn central(meter: &mut AppleSilicon, seconds: f64) -> Vec<f64> {
        let reading = meter.read(at(seconds)).unwrap();
        assert_eq!(reading.gaps, []);
        reading.joules.iter().map(|range| range.central).collect()
    }

    #[test]
    fn intervals_add_up_and_the_time_after_the_last_is_bridged() {
        let (mut meter, sender) = meter(true);
        assert_eq!(meter.chip(), "Apple M4");
        assert_eq!(central(&mut meter, 100.5), [0.0; 3]);
        send(&sender, 1.0, [10.0, 20.0, 1.0]);
        assert_eq!(central(&mut meter, 101.0), [10.0, 20.0, 1.0]);
        assert_eq!(central(&mut meter, 101.5), [15.0, 30.0, 1.5]);
        // It was less in truth: nothing falls, and the sum is right again later.
        send(&sender, 1.0, [4.0, 20.0, 1.0]);
        assert_eq!(central(&mut meter, 102.0), [15.0, 40.0, 2.0]);
        send(&sender, 2.0, [4.0, 20.0, 1.0]);
        assert_eq!(central(&mut meter, 104.0), [22.0, 80.0, 4.0]);
    }

    #[test]
    fn without_gpus_there_is_no_domain_of_one() {
        let (mut meter, sender) = meter(false);
        let components: Vec<_> = meter.domains().iter().map(|d| d.component).collect();
        assert_eq!(components, [Component::Cpu, Component::Ram]);
        send(&sender, 1.0, [10.0, 20.0, 1.0]);
        let reading = meter.read(at(101.0)).unwrap();
        assert_eq!(reading.joules[0], Range::new(9.0, 10.0, 11.0));
        assert_eq!(reading.joules[1].central, 1.0);
    }

    #[test]
    fn a_silence_is_a_gap_and_counted_once() {
        let (mut meter, sender) = meter(true);
        send(&sender, 1.0, [10.0, 0.0, 1.0]);
        meter.read(at(101.0)).unwrap();
        sender.send(Err("no channels".to_owned())).unwrap();
        let reading = meter.read(at(131.0)).unwrap();
        assert_eq!(reading.joules[0].central, 110.0);
        assert_eq!(reading.gaps.len(), 3);
        let lost = reading.gaps[0].lost_seconds;
        assert!((lost - 20.0).abs() < 1e-9, "{lost}");
        assert_eq!(reading.gaps[0].reason, "no channels");
        // The next interval goes on from there.
        send(&sender, 1.0, [10.0, 0.0, 1.0]);
        assert_eq!(central(&mut meter, 132.0)[0], 120.0);
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn elsewhere_there_is_no_such_chip() {
        assert!(AppleSilicon::open(true, Duration::ZERO).is_none());
    }
}
