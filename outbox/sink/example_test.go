package sink_test

import (
	"fmt"
	"io"

	"github.com/pawl-fsm/pawl/outbox/sink"
)

// The name of a consumer holds no credentials, so it can be logged and listed.
func ExampleParse() {
	u, err := sink.Parse("nats://bob:hunter2@broker:4222/STEPS?create=true&from=start")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(u.Consumer, u.FromStart)

	_, err = sink.Open("amqp://bob:hunter2@broker/bookings", io.Discard)
	fmt.Println(err)
	// Output:
	// sink nats://broker/STEPS true
	// sink amqp: the name of an exchange is missing or wrong; write amqp://[user:password@]host[:5672]/vhost?exchange=NAME
}
