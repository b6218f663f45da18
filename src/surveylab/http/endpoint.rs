use std::{fmt, str::FromStr};

use reqwest::Url;

/// Where SurveyLab's webhook is: an `http` or `https` URL with a host and a path, and nothing in it that is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Why a text can't be the webhook's URL. Never holds the text: people paste tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("is not a URL such as https://app.surveylab.com/api.php")]
    NoUrl,
    #[error("must begin with https:// or http://")]
    Scheme,
    #[error("must not hold a user name or password")]
    UserInfo,
    #[error("must not have a query: the gateway adds the API token and all other parameters itself")]
    Query,
    #[error("must not have a fragment (#…)")]
    Fragment,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        // `Url` drops tabs and line ends anywhere in the text.
        if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return Err(EndpointError::NoUrl);
        }
        let url = Url::parse(text).map_err(|_| EndpointError::NoUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            Err(EndpointError::Scheme)
        } else if !url.username().is_empty() || url.password().is_some() {
            Err(EndpointError::UserInfo)
        } else if url.query().is_some() {
            Err(EndpointError::Query)
        } else if url.fragment().is_some() {
            Err(EndpointError::Fragment)
        } else {
            Ok(Self(url))
        }
    }
}

impl Endpoint {
    pub(super) fn url(&self) -> &Url {
        &self.0
    }

    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_url_is_an_endpoint() {
        for (text, wanted) in [
            (
                "https://app.surveylab.com/api.php",
                Ok("https://app.surveylab.com/api.php"),
            ),
            ("http://127.0.0.1:8080", Ok("http://127.0.0.1:8080/")),
            ("http://[::1]:8080/a/b", Ok("http://[::1]:8080/a/b")),
            (
                "HTTPS://App.SurveyLab.com:443/api.php",
                Ok("https://app.surveylab.com/api.php"),
            ),
            ("", Err(EndpointError::NoUrl)),
            ("app.surveylab.com/api.php", Err(EndpointError::NoUrl)),
            ("https://", Err(EndpointError::NoUrl)),
            ("https://host:99999/", Err(EndpointError::NoUrl)),
            ("https://host/api.php\n", Err(EndpointError::NoUrl)),
            ("https://host/a b", Err(EndpointError::NoUrl)),
            ("ftp://host/api.php", Err(EndpointError::Scheme)),
            ("file:///api.php", Err(EndpointError::Scheme)),
            ("localhost:8080", Err(EndpointError::Scheme)),
            ("https://user@host/", Err(EndpointError::UserInfo)),
            ("https://:s3cret@host/", Err(EndpointError::UserInfo)),
            ("https://host/api.php?apiToken=s3cret", Err(EndpointError::Query)),
            ("https://host/api.php?", Err(EndpointError::Query)),
            ("https://host/api.php#s3cret", Err(EndpointError::Fragment)),
        ] {
            let endpoint = text.parse::<Endpoint>();
            if let Err(error) = &endpoint {
                assert!(!error.to_string().contains("s3cret"));
            }
            assert_eq!(
                endpoint.map(|endpoint| endpoint.to_string()),
                wanted.map(String::from),
                "{text}"
            );
        }
    }
}
