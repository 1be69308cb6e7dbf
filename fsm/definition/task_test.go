package definition_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

const (
	charge = `"http":{"connection":"psp","method":"POST","path":"/charges"},"idempotency":{},"deadline":"15m"`
	ends   = `"done":"PAID","error":"FAILED","unknown":"REVIEW"`
	refund = `"compensate":{"http":{"connection":"psp","method":"POST","path":"/refunds","body":{"charge":"$.result.body.id"}},"deadline":"24h"}`
)

// charging makes a definition whose state A has a task charge. members are those of the task, and of is what A has beside
// the task.
func charging(members, of string) string {
	return tasked(`"invoke":{"charge":{` + members + `}}` + of)
}

// tasked makes a definition with what there is in state A.
func tasked(a string) string {
	return `{"name":"w","initial":"A","states":{"A":{` + a + `,"on":{"drop":"PAID"}},
		"PAID":{"on":{"ship":"SHIPPED","refund_needed":"UNDOING","fail":"FAILED"}},"REVIEW":{"on":{"undo":"UNDOING","stop":"FAILED"}},
		"UNDOING":{"compensate":{},"done":"CANCELLED","error":"REVIEW"},
		"SHIPPED":{"type":"final"},"FAILED":{"type":"final","outcome":"failed"},"CANCELLED":{"type":"final","outcome":"cancelled"}}}`
}

func TestCanonicalTasks(t *testing.T) {
	t.Parallel()
	for short, long := range map[string]string{
		charging(charge+`,`+ends, ""): `"invoke":{"charge":{"http":{"connection":"psp","method":"POST","path":"/charges"},` +
			`"idempotency":{"header":"Idempotency-Key","window":"24h"},"deadline":"15m","done":[{"target":"PAID"}],"error":[{"target":"FAILED"}],"unknown":[{"target":"REVIEW"}]}}`,
		charging(charge+`,"timeout":"15s","retry":{},"success":"$.status == 201","late":{"event":"refund_needed"},
			"reconcile":{"http":{"method":"GET","path":"/charges","query":{"key":"$.task.key"}},"every":"5s","done":"$.body.paid == true","absent":"$.body.size() == 0"},
			"done":{"target":"PAID","assign":{"charge":"$.payload.body.id"}},"error":[{"guard":"$.payload.status == 402","target":"FAILED"},"REVIEW"],"unknown":"REVIEW",`+refund, ""): `"deadline":"15m","retry":{"max":6,"base":"1s","cap":"1m"},"success":"$.status == 201",` +
			`"reconcile":{"http":{"connection":"psp","method":"GET","path":"/charges","query":{"key":"$.task.key"}},"every":["5s"],"done":"$.body.paid == true","absent":"$.body.size() == 0","absent_after":"1m"},` +
			`"done":[{"target":"PAID","assign":{"charge":"$.payload.body.id"}}],"error":[{"target":"FAILED","guard":"$.payload.status == 402"},{"target":"REVIEW"}],"unknown":[{"target":"REVIEW"}],` +
			`"late":{"event":"refund_needed"},"compensate":{"http":{"connection":"psp","method":"POST","path":"/refunds","body":{"charge":"$.result.body.id"}},` +
			`"idempotency":{"header":"Idempotency-Key","window":"24h"},"deadline":"24h"}}}`,
		charging(`"description":"d","work":{"topic":"pack","lease":"60s","input":{}},"deadline":"P1D","retry":{"max":3,"base":"2m"},`+ends, ""): `"charge":{"description":"d","work":{"topic":"pack"},"deadline":"24h","retry":{"max":3,"base":"2m","cap":"2m"},"done":`,
		charging(`"http":{"connection":"psp","method":"POST","path":"/charges/{$.context.id}/{{x}}"},"deadline":"1h","timeout":"1500ms","idempotency":{"header":"X-Key","window":"2d"},
			"reconcile":{"http":{"connection":"other","method":"GET","path":"/"},"done":"$.status == 200"},`+ends, ""): `"path":"/charges/{$.context.id}/{{x}}"},"idempotency":{"header":"X-Key","window":"48h"},"timeout":"1s500ms","deadline":"1h",` +
			`"reconcile":{"http":{"connection":"other","method":"GET","path":"/"},"every":["5s","30s","5m"],"done":"$.status == 200"},"done":`,
		charging(`"work":{"topic":"pack","input":"$.context.order"},"deadline":"1h",`+ends+`,"compensate":{"work":{"topic":"unpack","lease":"1s"},"deadline":"1h","if_unknown":"run"}`, ""):      `"compensate":{"work":{"topic":"unpack","lease":"1s"},"deadline":"1h","if_unknown":"run"}`,
		tasked(`"compensate":{"on_failure":"continue"},"done":{"target":"PAID"},"error":"REVIEW"`):                                                                                               `"compensate":{"what":"all","on_failure":"continue"},"done":[{"target":"PAID"}],"error":[{"target":"REVIEW"}]`,
		tasked(`"compensate":{"what":"all","on_failure":"stop"},"done":"PAID","error":"REVIEW"`):                                                                                                 `"compensate":{"what":"all","on_failure":"stop"},"done":[{"target":"PAID"}],"error":[{"target":"REVIEW"}]`,
		strings.Replace(tasked(`"after":{"1h":"REVIEW"}`), `"drop":"PAID"`, `"pay":{"target":"PAID","compensate":{"work":{"topic":"refund","input":{"of":"$.payload.id"}},"deadline":"1h"}}`, 1): `"pay":[{"target":"PAID","compensate":{"work":{"topic":"refund","input":{"of":"$.payload.id"}},"deadline":"1h"}}]`,
	} {
		if c := canonical(t, short); !strings.Contains(c, long) {
			t.Errorf("%s\nis written as\n%s\nwithout\n%s", short, c, long)
		}
	}
}

func TestTaskFaults(t *testing.T) {
	t.Parallel()
	const at = "/states/A/invoke/charge"
	call := func(members string) string {
		return charging(`"http":{"connection":"psp","method":"POST","path":"/charges",`+members+`},"idempotency":{},"deadline":"15m",`+ends, "")
	}
	path := func(text string) string {
		return charging(`"http":{"connection":"psp","method":"POST","path":"`+text+`"},"idempotency":{},"deadline":"15m",`+ends, "")
	}
	with := func(members string) string { return charging(charge+`,`+ends+`,`+members, "") }
	work := func(members string) string {
		return charging(`"work":{"topic":"pack"},"deadline":"1h",`+ends+`,`+members, "")
	}
	reconcile := func(members string) string {
		return with(`"reconcile":{"http":{"method":"GET","path":"/charges"},` + members + `}`)
	}
	event := func(name, members string) string {
		return strings.Replace(tasked(`"after":{"1h":"REVIEW"}`), `"drop":"PAID"`, fmt.Sprintf(`"drop":"PAID",%q:{"target":"PAID",%s}`, name, members), 1)
	}
	undoing := func(members string) string {
		return strings.Replace(tasked(`"after":{"1h":"REVIEW"}`), `"compensate":{},"done":"CANCELLED","error":"REVIEW"`, members, 1)
	}
	many := strings.Repeat(`,"t":{`+charge+`,`+ends+`}`, 21)
	for i := range 21 {
		many = strings.Replace(many, `"t"`, fmt.Sprintf(`"t%d"`, i), 1)
	}
	for text, want := range map[string]map[string]string{
		// A task.
		charging(`"http":{"connection":"psp","method":"POST","path":"/charges"},"idempotency":{},`+ends, ""): {at + "/deadline": "is missing: how long"},
		charging(charge, ""): {
			at + "/done": "where an instance goes when the task is done", at + "/error": "when it has failed", at + "/unknown": "nobody knows",
			"/states/PAID": "", "/states/REVIEW": "", "/states/FAILED": "", "/states/SHIPPED": "", "/states/UNDOING": "", "/states/CANCELLED": "",
		},
		charging(`"deadline":"1h",`+ends, ""):                           {at: "either http, a call, or work"},
		charging(charge+`,"work":{"topic":"pack"},`+ends, ""):           {at: "either http, a call, or work"},
		charging(charge+`,`+ends+`,"retyr":{}`, ""):                     {at + "/retyr": "did you mean retry?"},
		tasked(`"invoke":{}`):                                           {"/states/A/invoke": "at least one"},
		tasked(`"invoke":[]`):                                           {"/states/A/invoke": "must be an object"},
		tasked(`"invoke":{"charge":"psp"}`):                             {at: "must be an object"},
		tasked(`"invoke":{"compensate":{` + charge + `,` + ends + `}}`): {"/states/A/invoke/compensate": "name the task otherwise"},
		tasked(`"invoke":{"1":{` + charge + `,` + ends + `}}`):          {"/states/A/invoke/1": "letter"},
		tasked(`"invoke":{"a.b":{` + charge + `,` + ends + `}}`):        {"/states/A/invoke/a.b": "letter"},
		tasked(`"invoke":{` + many[1:] + `}`):                           {"/states/A/invoke": "at most 20 tasks"},
		// Where tasks may be.
		strings.Replace(charging(charge+`,`+ends, ""), `"SHIPPED":{`, `"SHIPPED":{"invoke":{},`, 1):                          {"/states/SHIPPED/invoke": "nothing for a final state"},
		strings.Replace(charging(charge+`,`+ends, ""), `"initial":"A"`, `"initial":"A","invoke":{}`, 1):                      {"/invoke": "not a member"},
		strings.Replace(charging(charge+`,`+ends, ""), `"A":{`, `"A":{"initial":"X","states":{"X":{}},`, 1):                  {"/states/A/invoke": "without states within"},
		strings.Replace(tasked(`"invoke":{"charge":{`+charge+`,`+ends+`}},"always":"PAID"`), `,"on":{"drop":"PAID"}`, ``, 1): {"/states/A/invoke": "always leaves the state at once"},
		undoing(`"compensate":{},"done":"CANCELLED","error":"REVIEW","always":"CANCELLED"`):                                  {"/states/UNDOING/compensate": "always leaves the state at once"},
		// Handlers.
		charging(charge+`,"done":[{"target":"PAID","guard":"$.payload.status == 200"}],"error":"FAILED","unknown":"REVIEW"`, ""): {at + "/done": "no guard"},
		charging(charge+`,"done":["PAID","REVIEW"],"error":"FAILED","unknown":"REVIEW"`, ""):                                     {at + "/done/1": "never be taken"},
		charging(charge+`,"done":[],"error":"FAILED","unknown":"REVIEW"`, ""):                                                    {at + "/done": "at least one"},
		charging(charge+`,"done":"PADI","error":"FAILED","unknown":"REVIEW"`, ""):                                                {at + "/done": "did you mean PAID?"},
		charging(charge+`,"done":{"assign":{"a":1}},"error":"FAILED","unknown":"REVIEW"`, ""):                                    {at + "/done": "must have a target"},
		charging(charge+`,"done":{"target":"PAID","payload_schema":{},"internal":true,"resume":true,"rearm":true},"error":"FAILED","unknown":"REVIEW"`, ""): {
			at + "/done/payload_schema": "not a member", at + "/done/internal": "not a member", at + "/done/resume": "not a member", at + "/done/rearm": "not a member",
		},
		charging(charge+`,"done":{"target":"PAID","compensate":{}},"error":"FAILED","unknown":"REVIEW"`, ""):                    {at + "/done/compensate": "not a member"},
		charging(charge+`,"done":{"target":"PAID","assign":{"id":"$.payload.bdy.id"}},"error":"FAILED","unknown":"REVIEW"`, ""): {at + "/done/assign/id": "did you mean $.payload.body?"},
		charging(charge+`,"done":{"target":"PAID","assign":"*"},"error":"FAILED","unknown":"REVIEW"`, ""):                       nil,
		with(`"late":{"event":"refund_neded"}`): {at + "/late/event": `no state accepts "refund_neded" (did you mean refund_needed?)`},
		with(`"late":{"event":7}`):              {at + "/late/event": "string"},
		with(`"late":{}`):                       {at + "/late/event": "string"},
		with(`"late":"refund_needed"`):          {at + "/late": "object"},
		with(`"late":{"event":"ship","x":1}`):   {at + "/late/x": "not a member"},
		// Durations.
		with(`"timeout":"1ms"`): {at + "/timeout": "from 100ms to 10m"},
		with(`"timeout":"11m"`): {at + "/timeout": "from 100ms to 10m"},
		with(`"timeout":10`):    {at + "/timeout": "string"},
		strings.Replace(with(`"timeout":"1m"`), `"15m"`, `"366d"`, 1): {at + "/deadline": "to 8760h"},
		strings.Replace(with(`"timeout":"1m"`), `"15m"`, `"1mo"`, 1):  {at + "/deadline": "write days"},
		strings.Replace(with(`"timeout":"1m"`), `"15m"`, `"soon"`, 1): {at + "/deadline": "no duration"},
		with(`"retry":{"max":0}`):                                     {at + "/retry/max": "from 1 to 100"},
		with(`"retry":{"max":101}`):                                   {at + "/retry/max": "from 1 to 100"},
		with(`"retry":{"max":1.5,"base":"0s","cap":"x"}`):             {at + "/retry/max": "whole", at + "/retry/base": "1ms", at + "/retry/cap": "no duration"},
		with(`"retry":{"base":"2m","cap":"1m"}`):                      {at + "/retry/cap": "at least the base, 2m"},
		with(`"retry":{"times":3}`):                                   {at + "/retry/times": "not a member"},
		with(`"retry":3`):                                             {at + "/retry": "object"},
		strings.Replace(with(`"timeout":"1m"`), `"idempotency":{}`, `"idempotency":{"header":"Host","window":"1ms"}`, 1): {at + "/idempotency/header": "no name of a header", at + "/idempotency/window": "from 1s"},
		strings.Replace(with(`"timeout":"1m"`), `"idempotency":{}`, `"idempotency":{"header":"a b","ttl":1}`, 1):         {at + "/idempotency/header": "no name of a header", at + "/idempotency/ttl": "not a member"},
		strings.Replace(with(`"timeout":"1m"`), `"idempotency":{}`, `"idempotency":true`, 1):                             {at + "/idempotency": "object"},
		// Calls.
		charging(`"http":{},"idempotency":{},"deadline":"1h",`+ends, ""):    {at + "/http/connection": "string", at + "/http/method": "one of GET", at + "/http/path": "string"},
		charging(`"http":"psp","idempotency":{},"deadline":"1h",`+ends, ""): {at + "/http": "object"},
		call(`"url":"x"`): {at + "/http/url": "not a member"},
		strings.Replace(call(`"body":{}`), `"psp"`, `"P S P"`, 1):                                                   {at + "/http/connection": "name of a connection"},
		strings.Replace(call(`"body":{}`), `"psp"`, `"`+strings.Repeat("p", definition.MaxConnectionName)+`"`, 1):   nil,
		strings.Replace(call(`"body":{}`), `"psp"`, `"`+strings.Repeat("p", definition.MaxConnectionName+1)+`"`, 1): {at + "/http/connection": "name of a connection"},
		strings.Replace(call(`"body":{}`), `"POST"`, `"post"`, 1):                                                   {at + "/http/method": "one of GET"},
		strings.Replace(call(`"body":{}`), `"POST"`, `"GET"`, 1):                                                    {at + "/http/body": "has no body"},
		call(`"body":null`):                       {at + "/http/body": "not be null"},
		call(`"body":{"a":"$.contxt.a"}`):         {at + "/http/body/a": "did you mean $.context?"},
		call(`"body":{"a":"$.task.kye"}`):         {at + "/http/body/a": "did you mean $.task.key?"},
		call(`"body":{"a":"$.result"}`):           {at + "/http/body/a": "there is no $.result"},
		call(`"body":{"a":"$.status"}`):           {at + "/http/body/a": "there is no $.status"},
		call(`"body":{"$foo":1}`):                 {at + "/http/body/$foo": "is no operation"},
		call(`"query":{"a":{"b":1},"":1,"$x":1}`): {at + "/http/query/a": "must give", at + "/http/query/": "not empty", at + "/http/query/$x": "begin with $"},
		call(`"query":[]`):                        {at + "/http/query": "object"},
		call(`"headers":{"Authorization":"x","cookie":"x","HOST":"x","Content-Type":"x","Content-Length":"1","Connection":"x","Transfer-Encoding":"x"}`): {
			at + "/http/headers/Authorization": "not for a definition", at + "/http/headers/cookie": "not for", at + "/http/headers/HOST": "not for", at + "/http/headers/Content-Type": "not for",
			at + "/http/headers/Content-Length": "not for", at + "/http/headers/Connection": "not for", at + "/http/headers/Transfer-Encoding": "not for",
		},
		call(`"headers":{"TE":"x","Upgrade":"x","proxy-authorization":"x","Keep-Alive":"x","Expect":"x","Trailer":"x"}`): {
			at + "/http/headers/TE": "not for", at + "/http/headers/Upgrade": "not for", at + "/http/headers/proxy-authorization": "not for",
			at + "/http/headers/Keep-Alive": "not for", at + "/http/headers/Expect": "not for", at + "/http/headers/Trailer": "not for",
		},
		call(`"headers":{"idempotency-key":"x","X-A":"1","x-a":"2","a b":"x","X-B":[1]}`): {
			at + "/http/headers/idempotency-key": "header of idempotency", at + "/http/headers/x-a": "twice", at + "/http/headers/a b": "no name of a header", at + "/http/headers/X-B": "must give",
		},
		// Paths.
		path(`charges`):             {at + "/http/path": "begin with one slash"},
		path(`//evil.example`):      {at + "/http/path": "begin with one slash"},
		path(`/a b`):                {at + "/http/path": "no space"},
		path(`/a?b=1`):              {at + "/http/path": "is query"},
		path(`/a/{$.context.id`):    {at + "/http/path": "without its other one"},
		path(`/a/$.context.id}`):    {at + "/http/path": "without its other one"},
		path(`/a/{{$.context.id}`):  {at + "/http/path": "without its other one"},
		path(`/a/{$.context.{id}}`): {at + "/http/path": "without its other one"},
		path(`/a/{}`):               {at + "/http/path": "{} is no path"},
		path(`/a/{id}`):             {at + "/http/path": "{id} is no path: one in braces begins with $"},
		path(`/a/{$}`):              {at + "/http/path": "whole document"},
		path(`/a/{$.contxt.id}`):    {at + "/http/path": "did you mean $.context?"},
		path(`/{$.context.a}{$.context.b}/{{{$.task.id}}}`): nil,
		path(`/` + strings.Repeat("a", 2000)):               {at + "/http/path": "at most 2000"},
		// Answers.
		with(`"success":"$.stauts < 300"`):                                 {at + "/success": "did you mean $.status?"},
		with(`"success":"$.context.a == 1"`):                               {at + "/success": "a path reads $.status, $.headers, $.body"},
		with(`"success":true`):                                             {at + "/success": "must be a path"},
		reconcile(`"every":["5s"]`):                                        {at + "/reconcile/done": "is missing"},
		with(`"reconcile":{"done":"$.status == 200"}`):                     {at + "/reconcile/http": "object"},
		with(`"reconcile":{"http":{"path":"/"},"done":"$.status == 200"}`): {at + "/reconcile/http/method": "one of GET"},
		reconcile(`"done":"$.body.key == $.task.key && $.context.n == 1","failed":"$.headers.location == \"x\"","absent":{"absent":"$.body.id"},"absent_after":"5s","result":{"id":"$.body.id"}`): nil,
		reconcile(`"done":"$.bdy.paid == true"`):                         {at + "/reconcile/done": "did you mean $.body?"},
		reconcile(`"done":"$.status == 200","absent_after":"5s"`):        {at + "/reconcile/absent_after": "for a guard absent"},
		reconcile(`"done":"$.status == 200","every":"500ms"`):            {at + "/reconcile/every": "from 1s"},
		reconcile(`"done":"$.status == 200","every":["1s","x"]`):         {at + "/reconcile/every/1": "no duration"},
		reconcile(`"done":"$.status == 200","every":[]`):                 {at + "/reconcile/every": "1 to 20 durations"},
		reconcile(`"done":"$.status == 200","abesnt":"$.status == 404"`): {at + "/reconcile/abesnt": "did you mean absent?"},
		// Work.
		charging(`"work":{"topic":"1","lease":"2h","input":[1]},"deadline":"1h",`+ends, ""): {at + "/work/topic": "letter", at + "/work/lease": "from 1s to 1h", at + "/work/input": "must give an object"},
		charging(`"work":{"queue":"pack"},"deadline":"1h",`+ends, ""):                       {at + "/work/queue": "not a member", at + "/work/topic": "string"},
		work(`"idempotency":{},"timeout":"1s","success":"$.status == 1","reconcile":{"http":{"connection":"psp","method":"GET","path":"/"},"done":"$.status == 200"}`): {
			at + "/idempotency": "for a task with http", at + "/timeout": "for a task with http", at + "/success": "for a task with http", at + "/reconcile": "for a task with http",
		},
		// Compensations.
		with(refund): nil,
		with(`"compensate":{"http":{"connection":"psp","method":"POST","path":"/refunds","body":"$.result.bdy"},"deadline":"1h","done":"PAID","late":{"event":"ship"},"compensate":{}}`): {
			at + "/compensate/http/body": "did you mean $.result.body?", at + "/compensate/done": "not a member", at + "/compensate/late": "not a member", at + "/compensate/compensate": "not a member",
		},
		with(`"compensate":{"work":{"topic":"refund"}}`):                                     {at + "/compensate/deadline": "is missing"},
		with(`"compensate":{"work":{"topic":"refund"},"deadline":"1h","if_unknown":"skip"}`): {at + "/compensate/if_unknown": `"run" or "park"`},
		with(`"compensate":[]`):                                  {at + "/compensate": "object"},
		event("pay", `"compensate":{"work":{"topic":"refund"}}`): {"/states/A/on/pay/compensate/deadline": "is missing"},
		event("pay", `"compensate":{"work":{"topic":"refund","input":{"a":"$.result"}},"deadline":"1h"}`): {"/states/A/on/pay/compensate/work/input/a": "there is no $.result"},
		event("pay", `"compensate":{"work":{"topic":"refund","input":{"a":"$.payload.b"}},"deadline":"1h"},"payload_schema":{"properties":{"a":{}},"additionalProperties":false}`): {
			"/states/A/on/pay/compensate/work/input/a": "there is no $.payload.b",
		},
		event("pay.*", `"compensate":{"work":{"topic":"refund"},"deadline":"1h"}`): {"/states/A/on/pay.*/compensate": "a pattern has none"},
		event("*", `"compensate":{"work":{"topic":"refund"},"deadline":"1h"}`):     {"/states/A/on/*/compensate": "a pattern has none"},
		tasked(`"after":{"1h":{"target":"REVIEW","compensate":{}}}`):               {"/states/A/after/1h/compensate": "not a member"},
		// Undoing states.
		undoing(`"compensate":{"what":"last","on_failure":"retry","x":1},"done":"CANCELLED","error":"REVIEW"`): {
			"/states/UNDOING/compensate/what": `"all"`, "/states/UNDOING/compensate/on_failure": `"stop" or "continue"`, "/states/UNDOING/compensate/x": "not a member",
		},
		undoing(`"compensate":true,"done":"CANCELLED","error":"REVIEW"`):                                                 {"/states/UNDOING/compensate": "object"},
		undoing(`"compensate":{},"done":"CANCELLED"`):                                                                    {"/states/UNDOING/error": "when something could not be undone"},
		undoing(`"compensate":{},"error":"REVIEW"`):                                                                      {"/states/UNDOING/done": "when all is undone", "/states/CANCELLED": "leads to"},
		undoing(`"done":"CANCELLED","error":"REVIEW"`):                                                                   {"/states/UNDOING/done": "or that undoes", "/states/UNDOING/error": "undoes", "/states/UNDOING": "leads out", "/states/CANCELLED": "leads to"},
		undoing(`"compensate":{},"invoke":{"charge":{` + charge + `,` + ends + `}},"done":"CANCELLED","error":"REVIEW"`): {"/states/UNDOING/invoke": "not for a state that undoes"},
		undoing(`"compensate":{},"done":[{"target":"CANCELLED","guard":"$.context.a == 1"},"UNDOING"],"error":"REVIEW"`): {"/states/UNDOING/done": "must not lead to a state that undoes"},
		undoing(`"compensate":{},"done":"CANCELLED","error":"FAILED"`):                                                   {"/states/UNDOING/error": "must not lead to a final state"},
		undoing(`"compensate":{},"done":"CANCELLED","error":{"target":"REVIEW","internal":true}`):                        {"/states/UNDOING/error/internal": "not a member"},
		undoing(`"compensate":{},"done":{"target":"CANCELLED","guard":"$.context.a == 1"},"error":"REVIEW"`):             {"/states/UNDOING/done": "no guard"},
		strings.Replace(tasked(`"compensate":{},"done":"PAID","error":"REVIEW"`), `"A":{`, `"A":{"initial":"X","states":{"X":{}},`, 1): {
			"/states/A/compensate": "without states within", "/states/A/error": "without states within", "/states/A/done": "never be taken",
		},
		strings.Replace(tasked(`"after":{"1h":"REVIEW"}`), `"SHIPPED":{`, `"SHIPPED":{"compensate":{},"error":"A",`, 1): {"/states/SHIPPED/compensate": "final", "/states/SHIPPED/error": "final"},
	} {
		got := faults(t, text, "", definition.Limits{})
		for place, words := range want {
			if words == "" {
				delete(want, place)
				delete(got, place)
			}
		}
		expect(t, text, got, want)
	}
}

func TestTaskWarnings(t *testing.T) {
	t.Parallel()
	const (
		call = `"http":{"connection":"psp","method":"POST","path":"/charges"},"deadline":"15m"`
		late = `,"after":{"10m":"REVIEW"}`
	)
	quiet := func(text string) string { // Nothing of it is wrong beside.
		return strings.Replace(text, `"REVIEW":{"on":{"undo":"UNDOING","stop":"FAILED"}}`, `"REVIEW":{"on":{"undo":"UNDOING"}}`, 1)
	}
	compensable := func(members string) string {
		return strings.Replace(quiet(charging(charge+`,`+ends+`,`+refund, "")), `,"fail":"FAILED"`, members, 1)
	}
	for text, want := range map[string][]string{
		charging(charge+`,`+ends, ""): nil,
		// Deadlines.
		charging(charge+`,`+ends, late):                                        {"deadline-after-timeout /states/A/invoke/charge/deadline timeout after 10m"},
		charging(charge+`,`+ends, strings.Replace(late, "10m", "15m", 1)):      nil,
		charging(charge+`,`+ends, `,"after":{"10m":{"assign":{"slow":1}}}`):    nil,
		charging(charge+`,`+ends, `,"after":[{"in":"10m","target":"PAID"}]`):   {"deadline-after-timeout /states/A/invoke/charge/deadline timeout after 10m"},
		charging(charge+`,`+ends, `,"after":[{"in":"$.now","target":"PAID"}]`): nil,
		`{"name":"w","initial":"R","states":{"R":{"initial":"A","after":{"10m":"END"},"states":{"A":{"invoke":{"charge":{` + charge + `,"done":"END","error":"END","unknown":"END"}}}}},
			"END":{"type":"final"}}}`: {"deadline-after-timeout /states/R/states/A/invoke/charge/deadline timeout after 10m"},
		// Keys.
		charging(call+`,`+ends, ""):                      {"task-without-key /states/A/invoke/charge unknown at once"},
		charging(call+`,`+ends+`,"retry":{"max":1}`, ""): {"task-without-key /states/A/invoke/charge unknown at once"},
		charging(call+`,`+ends+`,"retry":{"max":3}`, ""): {"task-without-key /states/A/invoke/charge unknown at once", "retry-without-key /states/A/invoke/charge/retry 429"},
		charging(call+`,`+ends+`,"reconcile":{"http":{"method":"GET","path":"/"},"done":"$.status == 200"}`, ""): nil,
		charging(`"work":{"topic":"pack"},"deadline":"1h","retry":{"max":3},`+ends, ""):                          nil,
		strings.Replace(charging(call+`,`+ends, ""), `"A":{`, `"A":{"x-allow":["task-without-key"],`, 1):         nil,
		// Compensations.
		compensable(``):                 nil,
		compensable(`,"fail":"FAILED"`): {"not-undone /states/FAILED past charge of A"},
		compensable(`,"more":"MORE"}},"MORE":{"on":{"fail":"FAILED"`):                                                  {"not-undone /states/FAILED past charge of A"},
		strings.Replace(compensable(``), `"initial":"A"`, `"initial":"A","cancel":"CANCELLED"`, 1):                     {"not-undone /cancel leads to CANCELLED although charge of A"},
		strings.Replace(compensable(``), `"initial":"A"`, `"initial":"A","cancel":"UNDOING"`, 1):                       nil,
		strings.Replace(compensable(``), `"initial":"A"`, `"initial":"A","ttl":{"after":"30d","target":"FAILED"}`, 1):  {"not-undone /ttl/target leads to FAILED"},
		strings.Replace(compensable(``), `"initial":"A"`, `"initial":"A","ttl":{"after":"30d","target":"SHIPPED"}`, 1): nil,
		strings.Replace(compensable(``), `"unknown":"REVIEW"`, `"unknown":"FAILED"`, 1):                                {"not-undone /states/FAILED past charge of A"},
		// Transitions.
		`{"name":"w","initial":"A","states":{"A":{"on":{"pay":{"target":"B","compensate":{"work":{"topic":"refund"},"deadline":"1h"}},"no":"F"}},
			"B":{"on":{"end":"C","fail":"F"}},"C":{"type":"final"},"F":{"type":"final","outcome":"failed"}}}`: {
			"not-undone /states/F past pay in A", "no-undoing-state /states/A/on/pay/compensate is never carried out",
		},
		`{"name":"w","initial":"A","states":{"A":{"on":{"pay":[{"target":"B","guard":"$.context.a == 1","compensate":{"work":{"topic":"refund"},"deadline":"1h"}},"F"]}},
			"B":{"on":{"end":"C","undo":"U"}},"U":{"compensate":{},"done":"F","error":"B"},"C":{"type":"final"},"F":{"type":"final","outcome":"failed"}}}`: nil,
	} {
		d, err := definition.Read([]byte(text), "", definition.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if err := d.Err(); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var got []string
		for _, w := range d.Warnings() {
			got = append(got, fmt.Sprintf("%s %s %s", w.Name, w.Pointer, w.Detail))
		}
		fits := len(got) == len(want)
		for _, w := range want {
			words := strings.SplitN(w, " ", 3)
			fits = fits && slices.ContainsFunc(got, func(g string) bool {
				return strings.HasPrefix(g, words[0]+" "+words[1]+" ") && strings.Contains(g, words[2])
			})
		}
		if !fits {
			t.Errorf("%s\nwarns of %q\nwant %q", text, got, want)
		}
	}
}

func TestDiffOfTasks(t *testing.T) {
	t.Parallel()
	const (
		full = charge + `,"description":"d","timeout":"10s","retry":{"max":3},` + ends + `,"late":{"event":"ship"},` + refund
		at   = "/states/A/invoke/charge"
	)
	text := charging(full, "")
	for _, c := range []struct {
		from, to string
		want     []string // With a ! for what is unsafe.
	}{
		{`"description":"d"`, `"description":"e"`, []string{"changed " + at + "/description"}},
		{`"path":"/charges"`, `"path":"/v2/charges"`, []string{"!changed " + at + "/http"}},
		{`"idempotency":{},`, ``, []string{"!removed " + at + "/idempotency"}},
		{`"deadline":"15m"`, `"deadline":"PT15M"`, nil},
		{`"deadline":"15m"`, `"deadline":"10m"`, []string{"!changed " + at + "/deadline"}},
		{`"timeout":"10s"`, `"timeout":"15s"`, []string{"!removed " + at + "/timeout"}},
		{`"retry":{"max":3}`, `"retry":{"max":3,"base":"1s","cap":"60s"}`, nil},
		{`"retry":{"max":3}`, `"retry":{"max":4}`, []string{"!changed " + at + "/retry"}},
		{`"done":"PAID"`, `"done":"REVIEW"`, []string{"!changed " + at + "/done/0/target"}},
		{`"unknown":"REVIEW"`, `"unknown":{"target":"REVIEW","assign":{"a":1}}`, []string{"!added " + at + "/unknown/0/assign/a"}},
		{`,"late":{"event":"ship"}`, ``, []string{"!changed " + at + "/late"}},
		{`"path":"/refunds"`, `"path":"/credits"`, []string{"!changed " + at + "/compensate/http"}},
		{`,` + refund, ``, []string{"!removed " + at + "/compensate"}},
		{`"invoke":{"charge"`, `"invoke":{"bill"`, []string{"!added /states/A/invoke/bill", "!removed " + at}},
		{`"compensate":{},"done":"CANCELLED"`, `"compensate":{"on_failure":"continue"},"done":"CANCELLED"`, []string{"!changed /states/UNDOING/compensate/on_failure"}},
		{`"error":"REVIEW"},`, `"error":"PAID"},`, []string{"!changed /states/UNDOING/error/0/target"}},
		{`"drop":"PAID"`, `"drop":{"target":"PAID","compensate":{"work":{"topic":"t"},"deadline":"1h"}}`, []string{"!added /states/A/on/drop/0/compensate"}},
	} {
		other := strings.Replace(text, c.from, c.to, 1)
		if other == text {
			t.Fatalf("there is no %s", c.from)
		}
		var got []string
		for _, change := range definition.Diff(parse(t, text), parse(t, other)) {
			line := string(change.Kind) + " " + change.Pointer
			if change.Unsafe() {
				line = "!" + line
			}
			got = append(got, line)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s to %s: %q, want %q", c.from, c.to, got, c.want)
		}
	}
}
