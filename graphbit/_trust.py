"""Where certificates that can be trusted lie: what TLS connections are checked against."""

from __future__ import annotations

import os

# OpenSSL's compiled-in place differs between distributions; these are theirs. First found wins.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, FreeBSD
)


def trust_store() -> tuple[str, str]:
    """`("/etc/ssl/certs/ca-certificates.crt", "")`: a file of certificates and a directory of them, either may be "".

    SSL_CERT_FILE and SSL_CERT_DIR come first (as OpenSSL reads them), then the system's store, then certifi where it is
    installed. Both empty: libcurl's own idea.
    """
    file, directory = os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", "")
    if file or directory:
        return file, directory
    for bundle in _BUNDLES:
        if os.path.exists(bundle):
            return bundle, ""
    try:
        import certifi
    except ImportError:
        return "", ""
    return certifi.where(), ""
