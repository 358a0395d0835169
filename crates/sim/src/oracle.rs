//! What each unit of the disk may hold.
//!
//! A value is *excluded* once a write that began after the value was acknowledged has itself been acknowledged. What is
//! not excluded is allowed: acknowledged last, or not answered. The same is kept for flushed writes alone (G1).

#[derive(Clone, Debug)]
struct Value {
    stamp: u64,
    begun: u64,
    acked: Option<u64>,
    flushed: Option<u64>,
}

pub struct Oracle {
    units: Vec<Vec<Value>>,
    clock: u64,
}

impl Oracle {
    pub fn new(units: usize) -> Self {
        let zero = Value { stamp: 0, begun: 0, acked: Some(0), flushed: Some(0) };
        Self { units: vec![vec![zero]; units], clock: 1 }
    }

    pub fn units(&self) -> usize {
        self.units.len()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write is asked for; `stamp` is zero for a discard.
    pub fn begin(&mut self, units: std::ops::Range<usize>, stamp: u64) -> u64 {
        let begun = self.tick();
        for unit in units {
            self.units[unit].push(Value { stamp, begun, acked: None, flushed: None });
        }
        begun
    }

    /// It is acknowledged.
    pub fn ack(&mut self, units: std::ops::Range<usize>, begun: u64, fua: bool) {
        let now = self.tick();
        for unit in units {
            for value in self.units[unit].iter_mut().filter(|value| value.begun == begun) {
                value.acked.get_or_insert(now);
                if fua {
                    value.flushed.get_or_insert(now);
                }
            }
            self.forget(unit);
        }
    }

    /// The time, to know what a flush that begins now covers.
    pub fn now(&self) -> u64 {
        self.clock
    }

    /// A flush that began at `since` is acknowledged.
    pub fn flush(&mut self, since: u64) {
        let now = self.tick();
        for unit in 0..self.units.len() {
            for value in self.units[unit].iter_mut().filter(|value| value.acked.is_some_and(|at| at <= since)) {
                value.flushed.get_or_insert(now);
            }
            self.forget(unit);
        }
    }

    /// What may be read there.
    pub fn allowed(&self, unit: usize) -> Vec<u64> {
        let values = &self.units[unit];
        values.iter().filter(|value| !excluded(values, value, |later| later.acked)).map(|value| value.stamp).collect()
    }

    /// What may be there after a power cut.
    pub fn allowed_durable(&self, unit: usize) -> Vec<u64> {
        let values = &self.units[unit];
        values.iter().filter(|value| !excluded(values, value, |later| later.flushed)).map(|value| value.stamp).collect()
    }

    /// A guest is admitted and shown this: it is as good as flushed (G3). What is still unanswered of a guest that lives
    /// may come on top; `pending` are its writes.
    pub fn expose(&mut self, shown: &[u64], pending: &[u64]) {
        let now = self.tick();
        for (unit, stamp) in shown.iter().enumerate() {
            self.units[unit].retain(|value| value.acked.is_none() && pending.contains(&value.begun));
            self.units[unit].push(Value { stamp: *stamp, begun: 0, acked: Some(0), flushed: Some(now) });
        }
    }

    /// Values that nothing can bring back are dropped, to keep lists short: whatever one of them excludes is excluded by
    /// what excludes it.
    fn forget(&mut self, unit: usize) {
        let values = self.units[unit].clone();
        self.units[unit].retain(|value| !excluded(&values, value, |later| later.flushed));
    }
}

fn excluded(values: &[Value], value: &Value, by: impl Fn(&Value) -> Option<u64>) -> bool {
    value.acked.is_some_and(|acked| values.iter().any(|later| by(later).is_some() && acked < later.begun))
}
