"""Who signs requests, and with what: tokens of jwt-auth, and the signature of hmac-auth in the form that needs no date."""

import base64
import functools
import hashlib
import hmac
import json
import subprocess
import tempfile

SECRET = "a secret of the bench that is long enough"
FOR_EVER = 4_102_444_800


def url64(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def mac(text):
    return hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()


def openssl(*arguments, given=b""):
    return subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True).stdout


@functools.cache
def rsa():
    """A fresh pair, as PEM."""
    private = openssl("genrsa", "2048")
    return private, openssl("rsa", "-pubout", given=private).decode()


@functools.cache
def token(algorithm):
    parts = ({"typ": "JWT", "alg": algorithm}, {"key": algorithm, "exp": FOR_EVER})
    signed = ".".join(url64(json.dumps(part).encode()) for part in parts)
    if algorithm == "HS256":
        return f"{signed}.{url64(mac(signed))}"
    with tempfile.NamedTemporaryFile() as file:
        file.write(rsa()[0])
        file.flush()
        signature = openssl("dgst", "-sha256", "-sign", file.name, given=signed.encode())
    return f"{signed}.{url64(signature)}"


def headers(method, path):
    signature = base64.b64encode(mac(f"{method}\n{path}\n\nhmac-key\n\n")).decode()
    return {
        "X-Token-HS256": token("HS256"),
        "X-Token-RS256": token("RS256"),
        "X-HMAC-ACCESS-KEY": "hmac-key",
        "X-HMAC-ALGORITHM": "hmac-sha256",
        "X-HMAC-SIGNATURE": signature,
    }


def consumers():
    return [
        {"username": "signer_hs", "plugins": {
            "jwt-auth": {"key": "HS256", "secret": SECRET},
            "hmac-auth": {"access_key": "hmac-key", "secret_key": SECRET},
        }},
        {"username": "signer_rs", "plugins": {
            "jwt-auth": {"key": "RS256", "algorithm": "RS256", "public_key": rsa()[1]},
        }},
    ]
