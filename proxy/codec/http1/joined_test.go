package http1

import "testing"

// Joined values stay until the request ends, whatever is asked for after them.
func TestJoinedValuesStay(t *testing.T) {
	var r request
	for _, tt := range []struct{ agent, forwarded [2]string }{
		{[2]string{"a", "b"}, [2]string{"", "z"}},
		{[2]string{"", ""}, [2]string{"", ""}},
		{[2]string{"", "b"}, [2]string{"long enough to make the buffer grow", "z"}},
	} {
		send := "GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: " + tt.agent[0] + "\r\nX-Forwarded-For:" + tt.forwarded[0] +
			"\r\nUser-Agent: " + tt.agent[1] + "\r\nX-Forwarded-For: " + tt.forwarded[1] + "\r\n\r\n"
		if done, err := parsePieces(&r, []byte(send), 11); !done || err != nil {
			t.Fatal(done, err)
		}
		for range 2 { // the second time from memory
			agent, _ := r.Header("user-agent")
			forwarded, _ := r.Header("x-forwarded-for")
			if want := tt.agent[0] + "," + tt.agent[1]; string(agent) != want {
				t.Errorf("user-agent: got %q, want %q", agent, want)
			}
			if want := tt.forwarded[0] + "," + tt.forwarded[1]; string(forwarded) != want {
				t.Errorf("x-forwarded-for: got %q, want %q", forwarded, want)
			}
		}
		if len(r.joined.at) != 2 {
			t.Errorf("joined %d times, want once for each field", len(r.joined.at))
		}
		if v, ok := r.Header("absent"); ok {
			t.Errorf("absent field: got %q", v)
		}
	}
}
