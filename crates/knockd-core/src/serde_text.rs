//! Types with a text form are serialised as that text.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use crate::config::{AtEnd, Closed, Code, Firewall, LogFormat, OnExit, Reopen, Severity};
use crate::{
    CommandLine, CommandTemplate, DoorName, Exceptions, FlagRule, Forwards, OpenFor, Prefix, Protocol,
    Sequence, Services, Step, TcpFlags, Text,
};

struct Reader<T>(PhantomData<T>);

impl<T: FromStr<Err: Display>> Visitor<'_> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Reader(PhantomData))
            }
        }
    )+};
}

as_text!(
    AtEnd,
    Closed,
    Code,
    CommandLine,
    CommandTemplate,
    DoorName,
    Exceptions,
    Firewall,
    FlagRule,
    Forwards,
    LogFormat,
    OnExit,
    OpenFor,
    Prefix,
    Protocol,
    Reopen,
    Sequence,
    Services,
    Severity,
    Step,
    TcpFlags,
    Text
);
