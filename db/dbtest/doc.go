// Package dbtest gives each test a PostgreSQL database of its own.
//
//	func TestMain(m *testing.M) { dbtest.Main(m) }
//
//	func TestFire(t *testing.T) {
//		t.Parallel()
//		pool := dbtest.New(t)
//		…
//	}
//
// # What it owns
//
// One server per test process, started by the first test that needs it and stopped by [Main]. It is, in order:
//
//  1. the server of PAWL_TEST_DATABASE_URL, where the role must be allowed to create databases;
//  2. a container of PAWL_TEST_POSTGRES_IMAGE, by default postgres:18-alpine, if a Docker daemon answers and
//     PAWL_TEST_DOCKER is not "off";
//  3. a private server of the PostgreSQL on this machine, see package localpg.
//
// On that server, one template with the schema, made by the migrations once per process, and a clone of it per
// test, which takes some 50 ms. Databases are called pawl_test_<run>_<number>.
//
// [Private] starts a server of the test's own, and [Standby] a standby of that one.
//
// A statement on them ends after three minutes, by statement_timeout, unless the session sets another: no statement that
// waits for a lock holds a test up until its package's timeout.
//
// # When a test ends
//
// Its pool is closed and its database dropped. The database of a failed test is kept, and its DSN printed, if the
// server outlives the tests. The server of PAWL_TEST_DATABASE_URL does so always. Any other server does with
// PAWL_TEST_KEEP=1 if a test has failed; the output says how to remove it.
//
// # When things fail
//
//   - There is no server: the test fails, and says how to get one. Only a test that calls [Private] or [Standby]
//     is skipped: it needs PostgreSQL on this machine, and the tests may run on a container without it.
//   - Docker answers but has no image or cannot run it: that is logged, and the next kind of server is used.
//   - The process dies: Linux ends a private server with it, and the next run removes its folder; Docker's reaper
//     removes a container; databases on a shared server are dropped by the next run. A run is known to be alive
//     by a connection whose application_name is the databases' prefix, so runs may overlap.
//   - A package has no TestMain that calls Main: its end is like the death of the process. Then, on systems other
//     than Linux, a private server goes on until it is killed.
//
// # Leaks
//
// A closed pool leaves no goroutine. While a private server runs, one goroutine watches it. [IgnoreServer] makes
// goleak ignore that one, and [NoLeaks] checks a single test.
//
// Nothing but tests may import this package; it is the only one that imports testcontainers.
package dbtest
