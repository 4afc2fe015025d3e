#!/usr/bin/env python3
"""Keys, tokens and signatures made by others: jwcrypto (RFC 7515 to 7519) and Python's hmac.

    jose.py tokens              public keys, key set entries and a token for every algorithm
    jose.py jwe SECRET KID TEXT a JWE (A256GCM with the secret itself)
    jose.py hmac HASH SECRET TEXT

What is printed is JSON.
"""

import base64
import hashlib
import hmac
import json
import sys

SECRET = "a-secret-that-is-long-enough-for-every-hash-of-the-tests-and-then-some-more"
KINDS = {
    "RS": {"kty": "RSA", "size": 2048},
    "PS": {"kty": "RSA", "size": 2048},
    "ES256": {"kty": "EC", "crv": "P-256"},
    "ES384": {"kty": "EC", "crv": "P-384"},
    "ES512": {"kty": "EC", "crv": "P-521"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}
ALGORITHMS = ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
              "ES256", "ES384", "ES512", "EdDSA"]


def tokens():
    from jwcrypto import jwk, jwt
    made, out = {}, {}
    for name in ALGORITHMS:
        one = {}
        if name.startswith("HS"):
            encoded = base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")
            key = jwk.JWK(kty="oct", k=encoded)
            one["secret"] = SECRET
        else:
            kind = name if name in KINDS else name[:2]
            key = made.setdefault(kind, None) or jwk.JWK.generate(kid=f"key-{kind}", **KINDS[kind])
            made[kind] = key
            one["public_key"] = key.export_to_pem().decode()
            one["jwk"] = json.loads(key.export_public())
        header = {"typ": "JWT", "alg": name, "kid": one.get("jwk", {}).get("kid", "none")}
        token = jwt.JWT(header=header, claims={"key": name, "exp": 4102444800})
        token.make_signed_token(key)
        out[name] = {**one, "token": token.serialize()}
    return out


def jwe(secret, kid, text):
    from jwcrypto import jwe as encryption, jwk
    key = jwk.JWK(kty="oct", k=base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="))
    header = json.dumps({"alg": "dir", "enc": "A256GCM", "kid": kid})
    made = encryption.JWE(text.encode(), protected=header)
    made.add_recipient(key)
    return made.serialize(compact=True)


def mac(name, secret, text):
    return base64.b64encode(hmac.new(secret.encode(), text.encode(), getattr(hashlib, name)).digest()).decode()


print(json.dumps({"tokens": tokens, "jwe": jwe, "hmac": mac}[sys.argv[1]](*sys.argv[2:])))
