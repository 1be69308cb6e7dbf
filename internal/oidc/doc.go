// Package oidc checks the tokens of an OpenID Connect provider: JWTs that its clients send to pawl as
// bearer tokens.
//
// # What it owns
//
// A [Verifier] says whom a token speaks for, or that it is not valid. It reads the provider's keys, and
// keeps them in memory. What the roles of an [Identity] permit, and whether its tenant exists, is not
// decided here.
//
// # What is checked
//
// In this order, and nothing is fetched before the form is right:
//
//  1. The form: at most 16 KiB, three parts in strict base64url, a header of JSON without duplicate
//     members, typ absent, JWT or at+jwt, no crit, an algorithm of the configuration. An encrypted token
//     has five parts, so it is refused.
//  2. The signature, by a key of the provider that has the token's kid and fits its algorithm: key type
//     and curve, RSA of 2048 to 4096 bits, and alg, use and key_ops of the key. Several keys may have one
//     kid. Keys that a header carries or refers to (jwk, jku, x5c, x5u) are never used or fetched.
//  3. The claims, JSON without duplicate members: iss exactly, aud, exp (required), nbf and iat, with 30
//     seconds of leeway by the clock of this process, and sub.
//  4. The tenant and the roles, from the claims that the configuration names.
//
// The tenant is never "*": only a role makes an [Identity] one of the deployment.
//
// # When things fail
//
// The provider may be away when the process starts and later. The discovery document and the keys are
// fetched together, by one token at a time and at the earliest 10 seconds after the last attempt.
//
//	keys      a token with a key that is known     a token with a key that is not
//	unknown   fetch, then [ErrUnavailable]         the same
//	≤ 1 min   verified                             fetch, then [ErrInvalid]
//	≤ 5 min   verified, and a fetch begins         fetch, then [ErrInvalid]
//	older     fetch, then [ErrUnavailable]         the same
//
// So a key that the provider has removed is honoured for 5 minutes at most, and keys outlive a provider
// that is away for as long. A set of keys without a usable one counts as a fetch that failed.
//
// A fetch takes 5 seconds at most and reads at most 1 MiB for each document. It follows redirects only
// within a host. The provider may name another host for its keys in its discovery document.
//
// # What it may import
//
// go-oidc for discovery, go-jose for signatures and claims, and go-json-experiment for strict JSON. It
// imports no package of pawl. The OpenID Connect server of its tests must not reach the program.
package oidc
