#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| surveylab_gateway::fuzz::grpc_timeout(data));
