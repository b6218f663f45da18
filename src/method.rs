//! The methods of the contract.

use std::sync::LazyLock;

use crate::proto::invitation_service_server::SERVICE_NAME;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Add,
    StreamAdd,
    Get,
    List,
    Resolve,
    Status,
}

impl Method {
    pub const ALL: [Self; 6] = [
        Self::Add,
        Self::StreamAdd,
        Self::Get,
        Self::List,
        Self::Resolve,
        Self::Status,
    ];

    /// Its name in the contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "AddRespondent",
            Self::StreamAdd => "StreamAddRespondent",
            Self::Get => "GetInvitation",
            Self::List => "ListInvitations",
            Self::Resolve => "ResolveInvitation",
            Self::Status => "GetStatus",
        }
    }

    /// The method with a name of the contract.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// The path by which gRPC calls it.
    pub fn path(self) -> &'static str {
        static PATHS: LazyLock<[String; 6]> =
            LazyLock::new(|| Method::ALL.map(|method| format!("/{SERVICE_NAME}/{}", method.name())));
        &PATHS[self as usize]
    }

    /// The method that is called by a path.
    pub fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.path() == path)
    }

    /// Its request is a stream.
    pub fn is_stream(self) -> bool {
        self == Self::StreamAdd
    }

    /// It shows or changes what other callers have done.
    pub fn is_for_operators(self) -> bool {
        matches!(self, Self::List | Self::Resolve)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_methods_are_those_of_the_contract() {
        let files = FileDescriptorSet::decode(crate::proto::DESCRIPTORS).unwrap().file;
        let mut found = Vec::new();
        for file in &files {
            for service in &file.service {
                let path = |name| format!("/{}.{}/{name}", file.package(), service.name());
                let methods = service.method.iter();
                found.extend(methods.map(|method| (path(method.name()), method.client_streaming())));
            }
        }
        found.sort_unstable();
        let mut known = Method::ALL.map(|method| (method.path().to_string(), method.is_stream()));
        known.sort_unstable();
        assert_eq!(found, known);
        for method in Method::ALL {
            assert_eq!(Method::at(method.path()), Some(method));
            assert_eq!(Method::named(method.name()), Some(method));
        }
    }
}
